#!/usr/bin/env node
// Call the reads of one exported run (export_signal.py) on a porestream server, and print FASTQ.
//
//     node client.js HOST:PORT reads.jsonl [MODEL] > calls.fastq
//
// What every client must do, in any language, is marked [1] to [9]; the contract is proto/porestream/v1/porestream.proto.
"use strict";
const fs = require("node:fs");
const readline = require("node:readline");
const grpc = require("@grpc/grpc-js");
const { google, porestream } = require("./porestream_pb.js"); // npm run generate
const pb = porestream.v1;

const HEARTBEAT_S = 5;
const GIVE_UP_S = 120; // stop after this long without a result, while connections break or no server answers
const MESSAGE_BYTES = 256 << 10;
const WINDOW_SAMPLES = Number(process.env.WINDOW_SAMPLES ?? 4_000_000); // most samples held here of reads without a stored result
const FINAL = new Set(["INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "PERMISSION_DENIED", "UNAUTHENTICATED",
  "UNIMPLEMENTED"].map((name) => grpc.status[name]));

const method = (name, request, response, requestStream, responseStream) => ({
  path: `/porestream.v1.BasecallService/${name}`,
  requestStream,
  responseStream,
  requestSerialize: (message) => Buffer.from(request.encode(message).finish()),
  requestDeserialize: (bytes) => request.decode(bytes),
  responseSerialize: (message) => Buffer.from(response.encode(message).finish()),
  responseDeserialize: (bytes) => response.decode(bytes),
});
const Client = grpc.makeGenericClientConstructor({
  StreamReads: method("StreamReads", pb.StreamReadsRequest, pb.StreamReadsResponse, true, true),
  GetServerInfo: method("GetServerInfo", pb.GetServerInfoRequest, pb.GetServerInfoResponse, false, false),
});

const number = (value) => (typeof value === "number" ? value : value.toNumber()); // uint64 is a Long, far below 2^53 here
const hex = (bytes) => Buffer.from(bytes).toString("hex");
const uuid = (key) => key.replace(/^(.{8})(.{4})(.{4})(.{4})/, "$1-$2-$3-$4-");
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const say = (text) => process.stderr.write(`${text}\n`);

/** Reads a run's file: the first line describes the run, and every other line is a read with its signal. */
class Source {
  constructor(path) {
    this.lines = readline.createInterface({ input: fs.createReadStream(path) })[Symbol.asyncIterator]();
  }

  async run() {
    return JSON.parse((await this.lines.next()).value).run;
  }

  async next() {
    const { value, done } = await this.lines.next();
    if (done) return null;
    const read = JSON.parse(value);
    return { ...read, id: Buffer.from(read.read_id.replaceAll("-", ""), "hex"), signal: Buffer.from(read.signal, "base64") };
  }
}

/** Yields a read's chunks, as little-endian int16. The first has the calibration, and the last ends the read. [2] */
function* chunksOf(read, chunkSamples) {
  const total = read.signal.length / 2;
  let first = 0;
  do {
    const end = Math.min(first + chunkSamples, total);
    yield pb.ReadChunk.create({
      readId: read.id, channel: read.channel, well: read.well, readNumber: read.read_number, startSample: read.start_sample,
      firstSample: first, sampleCount: end - first, encoding: pb.SignalEncoding.SIGNAL_ENCODING_INT16_LE,
      signal: read.signal.subarray(2 * first, 2 * end),
      calibration: first === 0 ? read.calibration : null,
      endOfRead: end === total, endReason: end === total ? read.end_reason : "",
    });
    first = end;
  } while (first < total);
}

class Caller {
  constructor(target, source, run, model, limits) {
    Object.assign(this, { target, source, run, model, limits });
    this.pending = new Map(); // reads without a stored result; after a break they are sent again, to any server [8]
    this.unstoredSamples = 0;
    this.exhausted = false;
    this.expected = null;
    this.counts = { called: 0, rejected: 0, failed: 0 };
  }

  /** Connects, again and again if needed, until every read has a result. */
  async callAll() {
    let since = Date.now();
    for (let pause = 200; ; pause = Math.min(2 * pause, 5000)) {
      const before = this.results();
      const status = await this.connect();
      if (this.exhausted && this.pending.size === 0) return;
      if (FINAL.has(status.code)) throw new Error(`refused: ${status.details}`);
      if (this.results() > before) [since, pause] = [Date.now(), 200];
      if (Date.now() - since > GIVE_UP_S * 1000) {
        throw new Error(`server lost: ${status.details}; ${this.pending.size} reads have no result`);
      }
      say(`connection lost (${status.details}), trying again; ${this.pending.size} reads have no result`);
      await sleep(pause * (0.5 + Math.random() / 2));
    }
  }

  results() {
    return this.counts.called + this.counts.rejected + this.counts.failed;
  }

  /** Opens a connection and serves it until it ends; resolves to its status. */
  connect() {
    return new Promise((resolve) => {
      const client = new Client(this.target, grpc.credentials.createInsecure(), { "grpc.max_receive_message_length": -1 });
      const call = client.StreamReads();
      const state = { credit: 0, used: 0, batch: 0, draining: false, closed: false, toSend: [], wake: () => {} };
      this.state = state;
      let lastWrite = Date.now();
      let lastRead = Date.now();
      const write = async (message) => {
        if (state.closed) return;
        lastWrite = Date.now();
        if (!call.write(message)) await Promise.race([new Promise((done) => call.once("drain", done)), state.over]);
      };
      state.over = new Promise((done) => { state.end = done; });
      // [7] Both sides send something at least once per interval, and give up after four silent ones.
      const timer = setInterval(() => {
        if (Date.now() - lastWrite > HEARTBEAT_S * 1000) write({ heartbeat: {} });
        if (Date.now() - lastRead > 4 * HEARTBEAT_S * 1000) call.cancel();
      }, 1000);
      const finish = (status) => {
        if (state.closed) return;
        state.closed = true;
        clearInterval(timer);
        state.wake();
        state.end();
        client.close();
        resolve(status);
      };
      call.on("error", finish);
      call.on("status", finish);
      call.on("data", (response) => {
        lastRead = Date.now();
        if (response.opened) {
          this.expected = response.opened.caller; // [8] after a break, another server must have an equal caller
          state.credit = number(response.opened.credit.maxTotalSamples);
          state.toSend = [...this.pending.values()];
          this.send(state, write).catch((error) => { say(String(error)); call.cancel(); });
        } else if (response.credit) { // [3] a limit on all samples sent over the life of the connection
          state.credit = Math.max(state.credit, number(response.credit.maxTotalSamples));
        } else if (response.results) {
          this.store(response.results, write);
        } else if (response.goAway) { // [9] stop sending, take the results that still come, continue elsewhere
          state.draining = true;
        }
        state.wake();
      });
      write({ // [1] the first message
        open: {
          run: this.run, purpose: pb.StreamPurpose.STREAM_PURPOSE_RESULTS, options: { model: this.model },
          expected: this.expected, heartbeatInterval: google.protobuf.Duration.create({ seconds: HEARTBEAT_S }),
        },
      });
    });
  }

  /** Sends the reads without a result, and then new ones, within the credit. */
  async send(state, write) {
    const fits = (cost) => state.used + cost <= state.credit;
    for (;;) {
      const read = state.toSend.shift() ?? (await this.take(state));
      if (state.draining || !read) break;
      let batch = [];
      let bytes = 0;
      const flush = async () => {
        if (batch.length) await write({ signal: { batchSeq: ++state.batch, chunks: batch } }); // [4] numbered without gaps
        [batch, bytes] = [[], 0];
      };
      for (const chunk of chunksOf(read, Math.min(65536, this.limits.maxChunkSamples))) {
        const cost = Math.max(chunk.sampleCount, this.limits.minChunkCreditSamples); // [3] tiny chunks cost more
        while (!fits(cost) && !state.closed && !state.draining) {
          await flush();
          await new Promise((resolve) => { state.wake = resolve; if (fits(cost) || state.closed || state.draining) resolve(); });
        }
        if (state.closed || state.draining) return this.halfClose(state, write);
        state.used += cost;
        batch.push(chunk);
        bytes += chunk.signal.length;
        if (bytes >= MESSAGE_BYTES) await flush();
      }
      await flush();
    }
    return this.halfClose(state, write);
  }

  /** [6] Says that no more signal will come; the server ends the stream once all results are acknowledged. */
  halfClose(state, write) {
    return state.closed ? undefined : write({ halfClose: {} });
  }

  /** Waits for room and returns the file's next read; null if there are no more. */
  async take(state) {
    while (this.unstoredSamples > WINDOW_SAMPLES && !state.closed && !state.draining) {
      await new Promise((resolve) => { state.wake = resolve; });
    }
    if (state.closed || state.draining || this.exhausted) return null;
    const read = await this.source.next();
    if (!read) {
      this.exhausted = true;
      return null;
    }
    this.pending.set(hex(read.id), read);
    this.unstoredSamples += read.signal.length / 2;
    return read;
  }

  /** [5] Stores the results, then acknowledges them: after that, the server no longer has them. */
  store(batch, write) {
    let text = "";
    let samples = 0;
    for (const result of batch.results) {
      const key = hex(result.readId);
      const read = this.pending.get(key);
      if (!read) continue; // already received before the last break
      this.pending.delete(key);
      samples += read.signal.length / 2;
      if (result.parts.length === 0) {
        const rejected = result.status === pb.ReadStatus.READ_STATUS_REJECTED;
        this.counts[rejected ? "rejected" : "failed"] += 1;
        say(`read ${uuid(key)} ${rejected ? "rejected" : "failed"}: ${result.detail}`);
        continue;
      }
      this.counts.called += 1;
      for (const part of result.parts) {
        const qualities = Buffer.from(part.qualities).map((quality) => quality + 33).toString("latin1");
        text += `@${uuid(hex(part.readId))}\n${part.sequence}\n+\n${qualities}\n`;
      }
    }
    const seq = number(batch.firstResultSeq) + batch.results.length - 1;
    process.stdout.write(text, () => { // if the reader is slow, this waits, and so does sending more signal
      this.unstoredSamples -= samples;
      write({ resultAck: { resultSeq: seq } });
      this.state.wake(); // wakes the current connection; the one that got these results may be over
    });
  }
}

async function main([target, path, model = ""]) {
  if (!target || !path) throw new Error("usage: node client.js HOST:PORT reads.jsonl [MODEL] > calls.fastq");
  const info = await new Promise((resolve, reject) => {
    const client = new Client(target, grpc.credentials.createInsecure());
    const options = { deadline: Date.now() + 10_000, waitForReady: true };
    client.GetServerInfo({}, new grpc.Metadata(options), options, (error, answer) => {
      client.close();
      if (error) reject(new Error(`${target} does not answer: ${error.details}`));
      else resolve(answer);
    });
  });
  const source = new Source(path);
  const caller = new Caller(target, source, await source.run(), model, info.limits);
  await caller.callAll();
  const { called, rejected, failed } = caller.counts;
  say(`${caller.results()} reads: ${called} called, ${rejected} rejected, ${failed} failed`);
}

main(process.argv.slice(2)).catch((error) => {
  say(`Error: ${error.message}`);
  process.exitCode = 1;
});
