// Runs CUDA's device language on the CPU: kernels are compiled after this header, and every CUDA thread is a fiber.
//
// A block runs to its end before the next one starts. Within a block a fiber gives way only at a barrier, a shuffle, a
// vote or a reduction, so the result depends on the schedule alone. Threads that do not depend on each other's order
// give the same result in all three schedules; a missing barrier shows up as a result that depends on the schedule.
//
// These are reported as errors: a block's threads wait at different barriers, threads wait forever, a warp collective's
// mask names a lane that has exited, a shuffle reads a lane outside the mask, one warp's lanes are in different
// collectives. Shared memory is filled with 0xA5 before each block, because reading it before writing it is a defect
// that zeros would hide.
//
// The CPU differs from a GPU in these ways, and nothing reports them: a loop that spins on memory never ends, because
// fibers are not preempted; there is no weak memory model (build with the thread sanitizer to find races within a
// block); shifts by 32 or more, and casts of floats too large for the integer, are undefined in C++, and the two
// machines give different results.
#pragma once
#if !defined(__x86_64__) || !defined(__linux__)
#error "the emulator switches fibers with x86-64 assembly for Linux"
#endif

#include <float.h>
#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <type_traits>  // <mutex> and <vector> would take longer to compile than most kernels
#include <utility>

#define __CUDA_EMU__ 1

// ---- Sanitizers ---------------------------------------------------------------------------------------------------
// The emulator's own code is not instrumented: only the kernel's accesses count, ordered by what orders them on a GPU.
// The thread sanitizer learns of fibers through its own interface.
#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#define EMU_RELEASE(address) __tsan_release((void*)(address))
#define EMU_ACQUIRE(address) __tsan_acquire((void*)(address))
#else
#define EMU_RELEASE(address) ((void)0)
#define EMU_ACQUIRE(address) ((void)0)
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)0)
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)0)
#endif
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define EMU_RUNTIME __attribute__((no_sanitize("address,thread")))
#define EMU_STACK_KIB 256   // instrumented frames are larger
#else
#define EMU_RUNTIME
#define EMU_STACK_KIB 64
#endif

// When a fiber gives way, others write memory. Without this attribute, g++ sees that these functions do not use the
// kernel's shared arrays, and keeps elements of them in registers across a barrier.
#define EMU_OPAQUE EMU_RUNTIME __attribute__((noipa))

// ---- Qualifiers ---------------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("emu_shared"), aligned(16)))

// ---- Vector types, aligned as in CUDA: wide loads of misaligned addresses fault here too --------------------------
#define EMU_VECTOR2(name, T, alignment)       \
    struct __align__(alignment) name {        \
        T x, y;                               \
    };                                        \
    inline name make_##name(T x, T y) {       \
        return {x, y};                        \
    }
#define EMU_VECTOR4(name, T, alignment)             \
    struct __align__(alignment) name {              \
        T x, y, z, w;                               \
    };                                              \
    inline name make_##name(T x, T y, T z, T w) {   \
        return {x, y, z, w};                        \
    }
EMU_VECTOR2(short2, short, 4)
EMU_VECTOR2(ushort2, unsigned short, 4)
EMU_VECTOR2(int2, int, 8)
EMU_VECTOR2(uint2, unsigned, 8)
EMU_VECTOR2(float2, float, 8)
EMU_VECTOR2(longlong2, long long, 16)
EMU_VECTOR2(ulonglong2, unsigned long long, 16)
EMU_VECTOR2(double2, double, 16)
EMU_VECTOR4(char4, signed char, 4)
EMU_VECTOR4(uchar4, unsigned char, 4)
EMU_VECTOR4(short4, short, 8)
EMU_VECTOR4(ushort4, unsigned short, 8)
EMU_VECTOR4(int4, int, 16)
EMU_VECTOR4(uint4, unsigned, 16)
EMU_VECTOR4(float4, float, 16)
#undef EMU_VECTOR2
#undef EMU_VECTOR4

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};

// The linker defines the ends of the section that holds the static shared arrays; if there are none, both are null.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_emu_shared[], __stop_emu_shared[];

namespace emu {

constexpr unsigned MAX_THREADS = 1024;                // a block's limit on every GPU
constexpr unsigned MAX_SHARED_BYTES = 227 << 10;      // a block's limit on sm_90
constexpr unsigned char POISON = 0xA5;
constexpr size_t STACK_BYTES = (EMU_STACK_KIB << 10) + 5 * 64;   // odd lines put stack tops into different cache sets
constexpr uint64_t CANARY = 0x5AFE57AC5AFE57ACull;               // at a stack's end, where only an overflow writes

enum Schedule { FORWARD, REVERSE, RANDOM };
enum State : uint8_t { RUNNABLE, IN_WARP, IN_BLOCK, DONE };
enum Collective : uint32_t {
    SYNCWARP, SHFL, SHFL_UP, SHFL_DOWN, SHFL_XOR, BALLOT, ANY, ALL, ADD, MIN, MAX, AND, OR, XOR
};

struct Site {   // a place in the kernel's source
    const char* file;
    int line;
    bool operator!=(const Site& other) const {
        return line != other.line || (file != other.file && strcmp(file, other.file) != 0);
    }
};

struct alignas(64) Fiber {   // everything that a switch touches, in one cache line
    void* sp;
    uint64_t value;          // what it brings to a collective
    uint64_t result;         // what it takes from it
    uint64_t meeting;        // the collective it waits in: mask and Collective, so that different ones never meet
    Site site;               // where it waits
    State state;
    uint8_t lane;
    uint8_t source;          // the lane that its shuffle reads
    uint8_t warp;
};
static_assert(sizeof(Fiber) == 64);

struct Warp {
    unsigned alive;     // lanes that exist and have not returned
    unsigned waiting;   // lanes in a warp collective
    unsigned runnable;
};

struct Machine {
    unsigned current = 0, threads = 0, warps = 0, runnable_warps = 0, alive = 0;
    unsigned at_barrier = 0, votes = 0, generation = 0;
    Site barrier = {nullptr, 0};
    char barrier_clock[2] = {0, 0};   // two: a thread may enter the next barrier before all have left this one
    int schedule = FORWARD;
    bool failed = false;
    uint64_t random = 1, switches = 0;
    uint3 block_index = {0, 0, 0};
    dim3 grid, block;
    void (*body)(void**) = nullptr;
    void** args = nullptr;
    char* stacks = nullptr;
    void* main_sp = nullptr;
    void* main_tsan = nullptr;
    char* error = nullptr;
    size_t error_bytes = 0;
    Warp warp[MAX_THREADS / 32];
    Fiber fiber[MAX_THREADS];
    uint3 thread[MAX_THREADS];
    void* tsan[MAX_THREADS] = {};
};

// Static, not inline, because the dynamic linker would merge the machines of all modules into one.
static Machine M;
static pthread_mutex_t launch_lock = PTHREAD_MUTEX_INITIALIZER;
alignas(1024) static char dynamic_shared[MAX_SHARED_BYTES];

template <class To, class From>
inline To bits_of(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

EMU_RUNTIME inline Fiber& self() { return M.fiber[M.current]; }
EMU_RUNTIME inline int lane() { return self().lane; }

// ---- The switch ---------------------------------------------------------------------------------------------------
// This changes the stack pointer; the compiler saves the registers that a call would preserve. It is inline, and jumps
// where C would return, to help branch prediction: fibers mostly wait at the same place, so the jump's target is known.
EMU_RUNTIME inline __attribute__((always_inline)) void swap_stacks(void** save_sp, void* new_sp) {
    asm volatile(
        "subq $128, %%rsp\n"   // the red zone
        "pushq %%rbp\n"
        "leaq 1f(%%rip), %%rax\n"
        "pushq %%rax\n"
        "movq %%rsp, (%[save])\n"
        "movq %[to], %%rsp\n"
        "popq %%rax\n"
        "jmpq *%%rax\n"
        "1:\n"
        "popq %%rbp\n"
        "addq $128, %%rsp\n"
        : [save] "+D"(save_sp), [to] "+S"(new_sp)
        :
        : "rax", "rbx", "rcx", "rdx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc",
          "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
          "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

// ---- Scheduling ---------------------------------------------------------------------------------------------------
EMU_RUNTIME inline void jump(void** save_sp, unsigned to) {
    M.current = to;
    ++M.switches;
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(M.tsan[to], __tsan_switch_to_fiber_no_sync);
#endif
    swap_stacks(save_sp, M.fiber[to].sp);
}

[[noreturn]] EMU_RUNTIME inline void leave_block() {
#ifdef __SANITIZE_THREAD__
    __tsan_switch_to_fiber(M.main_tsan, 0);
#endif
    void* never_resumed;
    swap_stacks(&never_resumed, M.main_sp);
    __builtin_unreachable();
}

[[noreturn]] EMU_RUNTIME __attribute__((noinline, cold)) inline void fail(const char* why, Site site) {
    const uint3 b = M.block_index, t = M.thread[M.current];
    char place[256] = "";
    if (site.file) snprintf(place, sizeof place, "%s:%d, ", site.file, site.line);
    snprintf(M.error, M.error_bytes, "%s (%sblock %u,%u,%u, thread %u,%u,%u)", why, place,
             b.x, b.y, b.z, t.x, t.y, t.z);
    M.failed = true;
    leave_block();
}

// Lists the places where threads wait, and how many wait there; the first three are enough to see the mistake.
[[noreturn]] EMU_RUNTIME __attribute__((noinline, cold)) inline void fail_deadlock(const char* why, Site site) {
    struct {
        Site site;
        unsigned threads;
    } places[3] = {};
    for (unsigned i = 0; i < M.threads; ++i) {
        const Fiber& f = M.fiber[i];
        if (f.state != IN_WARP && f.state != IN_BLOCK) continue;
        for (auto& place : places) {
            if (place.threads && place.site != f.site) continue;
            place.site = f.site;
            ++place.threads;
            break;
        }
    }
    char text[512];
    int used = snprintf(text, sizeof text, "deadlock: %s", why);
    for (const auto& place : places)
        if (place.threads && used < int(sizeof text))
            used += snprintf(text + used, sizeof text - used, "; %u waiting at %s:%d", place.threads, place.site.file,
                             place.site.line);
    fail(text, site);
}

// Returns the first set bit after position `p`, going up and wrapping around, or down in the reverse schedule.
EMU_RUNTIME inline unsigned next_bit(unsigned bits, unsigned p) {
    if (M.schedule == REVERSE) {
        const unsigned below = bits & ((1u << p) - 1);
        return 31 - __builtin_clz(below ? below : bits);
    }
    const unsigned above = p == 31 ? 0 : bits & (~0u << (p + 1));
    return __builtin_ctz(above ? above : bits);
}

EMU_RUNTIME inline unsigned random_below(uint64_t n) {
    M.random = M.random * 6364136223846793005ull + 1442695040888963407ull;
    return unsigned((M.random >> 33) % n);
}

// Returns the next fiber to run, or -1. The current one's warp goes first: that keeps fewer fibers under way at once,
// which suits the caches.
EMU_RUNTIME inline int pick() {
    const unsigned from = M.schedule == RANDOM ? random_below(M.threads) : M.current;
    if (!M.runnable_warps) return -1;
    unsigned warp = from >> 5, lanes = M.warp[warp].runnable;
    if (!lanes) {
        warp = next_bit(M.runnable_warps, warp);
        lanes = M.warp[warp].runnable;
    }
    return int(warp * 32 + next_bit(lanes, from & 31));
}

EMU_RUNTIME inline void set_runnable(Fiber& f) {
    f.state = RUNNABLE;
    M.warp[f.warp].runnable |= 1u << f.lane;
    M.runnable_warps |= 1u << f.warp;
}

EMU_RUNTIME inline void set_waiting(Fiber& f, State state) {
    f.state = state;
    if (!(M.warp[f.warp].runnable &= ~(1u << f.lane))) M.runnable_warps &= ~(1u << f.warp);
}

EMU_RUNTIME inline void give_way() {
    Fiber& me = self();
    const int next = pick();
    if (next < 0)
        fail_deadlock("every live thread waits at a barrier or warp collective that cannot complete", me.site);
    if (unsigned(next) != M.current) jump(&me.sp, unsigned(next));
}

// ---- The block's barrier ------------------------------------------------------------------------------------------
EMU_RUNTIME inline void open_barrier() {
    for (unsigned i = 0; i < M.threads; ++i) {
        Fiber& f = M.fiber[i];
        if (f.state != IN_BLOCK) continue;
        set_runnable(f);
        f.result = M.votes;
    }
    M.at_barrier = M.votes = 0;
    ++M.generation;
}

// Returns how many threads of the block voted.
EMU_OPAQUE inline int block_barrier(bool vote, Site site) {
    Fiber& me = self();
    [[maybe_unused]] const char* clock = &M.barrier_clock[M.generation & 1];
    if (!M.at_barrier)
        M.barrier = site;
    else if (M.barrier != site)
        fail("divergent __syncthreads: threads of one block wait at different source lines", site);
    me.site = site;
    set_waiting(me, IN_BLOCK);
    M.votes += vote;
    EMU_RELEASE(&M.at_barrier);
    if (++M.at_barrier == M.alive) {
        EMU_ACQUIRE(&M.at_barrier);
        EMU_RELEASE(clock);
        open_barrier();
    }
    if (me.state != RUNNABLE) {
        give_way();
        EMU_ACQUIRE(clock);
    }
    return int(me.result);
}

// ---- Warp collectives ---------------------------------------------------------------------------------------------
// A lane brings a value and waits until all lanes of its mask are in the same collective; the last one deals out the
// results.
struct Shuffle {
    EMU_RUNTIME static void deal(Fiber* base, unsigned mask) {
        for (unsigned m = mask; m; m &= m - 1) {
            Fiber& f = base[__builtin_ctz(m)];
            f.result = base[f.source].value;
        }
    }
};
template <class T, T (*combine)(T, T)>
struct Fold {
    EMU_RUNTIME static void deal(Fiber* base, unsigned mask) {
        T total = T(base[__builtin_ctz(mask)].value);
        for (unsigned m = mask & (mask - 1); m; m &= m - 1) total = combine(total, T(base[__builtin_ctz(m)].value));
        for (unsigned m = mask; m; m &= m - 1) base[__builtin_ctz(m)].result = uint64_t(total);
    }
};
struct Nothing {
    EMU_RUNTIME static void deal(Fiber*, unsigned) {}
};

template <class Deal>
EMU_OPAQUE inline uint64_t warp_collective(Collective kind, unsigned mask, uint64_t value, unsigned source, Site site) {
    Fiber& me = self();
    Warp& warp = M.warp[me.warp];
    Fiber* base = &M.fiber[me.warp * 32];
    if (!(mask >> me.lane & 1)) fail("warp collective: calling lane is not in its own mask", site);
    if (mask & ~warp.alive) fail("warp collective: mask names a lane that has exited or does not exist", site);
    const uint64_t meeting = uint64_t(kind) << 32 | mask;
    me.value = value;
    me.source = uint8_t(source);
    me.meeting = meeting;
    me.site = site;
    if (kind == SYNCWARP) EMU_RELEASE(&me.value);
    warp.waiting |= 1u << me.lane;
    bool complete = (warp.waiting & mask) == mask;
    for (unsigned m = complete ? mask : 0; m; m &= m - 1) complete &= base[__builtin_ctz(m)].meeting == meeting;
    if (!complete) {
        set_waiting(me, IN_WARP);
        give_way();
        if (kind == SYNCWARP) EMU_ACQUIRE(&me.result);
        return me.result;
    }
    warp.waiting &= ~mask;
    Deal::deal(base, mask);
    for (unsigned m = mask; m; m &= m - 1) base[__builtin_ctz(m)].state = RUNNABLE;
    warp.runnable |= mask;
    if (kind == SYNCWARP) {   // only this one orders memory; on a GPU, shuffles and votes do not
        for (unsigned m = mask; m; m &= m - 1) EMU_ACQUIRE(&base[__builtin_ctz(m)].value);
        for (unsigned m = mask; m; m &= m - 1) EMU_RELEASE(&base[__builtin_ctz(m)].result);
    }
    return me.result;
}

template <class T>
EMU_RUNTIME inline T shuffle(Collective kind, unsigned mask, T value, unsigned source, Site site) {
    static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "CUDA shuffles numbers of 32 and 64 bits");
    if (!(mask >> source & 1)) fail("shuffle reads a lane outside the mask (undefined on the GPU)", site);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = warp_collective<Shuffle>(kind, mask, bits, source, site);
    memcpy(&value, &bits, sizeof value);
    return value;
}

template <class T> constexpr T add(T a, T b) { return T(a + b); }
template <class T> constexpr T lesser(T a, T b) { return b < a ? b : a; }
template <class T> constexpr T greater(T a, T b) { return a < b ? b : a; }
template <class T> constexpr T both(T a, T b) { return a & b; }
template <class T> constexpr T either(T a, T b) { return a | b; }
template <class T> constexpr T differ(T a, T b) { return a ^ b; }

template <class T, T (*combine)(T, T)>
EMU_RUNTIME inline T reduce(Collective kind, unsigned mask, T value, Site site) {
    return T(warp_collective<Fold<T, combine>>(kind, mask, uint64_t(value), 0, site));
}

// ---- Launches -----------------------------------------------------------------------------------------------------
EMU_RUNTIME inline void fiber_main() {
    EMU_ACQUIRE(&M.grid);
    M.body(M.args);
    Fiber& me = self();
    set_waiting(me, DONE);
    M.warp[me.warp].alive &= ~(1u << me.lane);
    EMU_RELEASE(&M.alive);
    if (--M.alive == 0) leave_block();
    if (M.at_barrier == M.alive) {   // a thread that has returned does not hold up a barrier (sm_70 and later)
        EMU_ACQUIRE(&M.at_barrier);
        EMU_RELEASE(&M.barrier_clock[M.generation & 1]);
        open_barrier();
    }
    const int next = pick();
    if (next < 0) fail_deadlock("live threads wait for a thread that has exited", {nullptr, 0});
    void* never_resumed;
    jump(&never_resumed, unsigned(next));
    __builtin_unreachable();
}

// Not memset, because the address sanitizer intercepts it, and forbids writing between two arrays.
EMU_RUNTIME inline void poison(void* start, size_t bytes) {
    asm volatile("rep stosb" : "+D"(start), "+c"(bytes) : "a"(POISON) : "memory");
}

EMU_RUNTIME inline size_t static_shared_bytes() { return size_t(__stop_emu_shared - __start_emu_shared); }

EMU_RUNTIME inline void run_block(unsigned shared_bytes) {
    poison(__start_emu_shared, static_shared_bytes());
    poison(dynamic_shared, shared_bytes);
    for (unsigned w = 0; w < M.warps; ++w) {
        const unsigned lanes = M.threads - w * 32;
        const unsigned all = lanes >= 32 ? ~0u : (1u << lanes) - 1;
        M.warp[w] = {all, 0, all};
    }
    M.runnable_warps = M.warps == 32 ? ~0u : (1u << M.warps) - 1;
    for (unsigned i = 0; i < M.threads; ++i) {
        Fiber& f = M.fiber[i];
        f.state = RUNNABLE;
        f.lane = i & 31;
        f.warp = uint8_t(i >> 5);
        f.site = {nullptr, 0};
        M.thread[i] = {i % M.block.x, i / M.block.x % M.block.y, i / (M.block.x * M.block.y)};
        void** sp = reinterpret_cast<void**>(M.stacks + STACK_BYTES * (i + 1)) - 2;   // aligned as after a call
        *sp = reinterpret_cast<void*>(&fiber_main);
        f.sp = sp;
    }
    M.alive = M.threads;
    M.at_barrier = M.votes = 0;
    EMU_RELEASE(&M.grid);
    jump(&M.main_sp, M.schedule == REVERSE ? M.threads - 1 : M.schedule == RANDOM ? random_below(M.threads) : 0);
    EMU_ACQUIRE(&M.alive);
}

EMU_RUNTIME inline bool refuse(const char* why) {
    snprintf(M.error, M.error_bytes, "%s", why);
    return false;
}

EMU_RUNTIME inline uint64_t& canary(unsigned fiber) {
    return *reinterpret_cast<uint64_t*>(M.stacks + STACK_BYTES * fiber);
}

EMU_RUNTIME inline bool prepare() {
    if (!M.stacks) {
        void* stacks = mmap(nullptr, STACK_BYTES * MAX_THREADS, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) return refuse("no memory for the threads' stacks");
        M.stacks = static_cast<char*>(stacks);
    }
    for (unsigned i = 0; i < M.threads; ++i) canary(i) = CANARY;
    if (M.failed)   // some frames were left without returning
        ASAN_UNPOISON_MEMORY_REGION(M.stacks, STACK_BYTES * MAX_THREADS);
    M.failed = false;
#ifdef __SANITIZE_THREAD__
    M.main_tsan = __tsan_get_current_fiber();
    for (unsigned i = 0; i < M.threads; ++i) {
        if (M.tsan[i]) continue;
        char name[32];
        snprintf(name, sizeof name, "CUDA thread %u", i);
        M.tsan[i] = __tsan_create_fiber(0);
        __tsan_set_fiber_name(M.tsan[i], name);
    }
#endif
    return true;
}

struct Launch {   // laid out as in emulator.py
    unsigned grid[3], block[3], shared_bytes;
    int schedule;
    uint64_t seed;
    void** args;
    char* error;
    size_t error_bytes;
};

struct LaunchLock {
    LaunchLock() { pthread_mutex_lock(&launch_lock); }
    ~LaunchLock() { pthread_mutex_unlock(&launch_lock); }
};

EMU_RUNTIME inline bool launch(const Launch& l, void (*body)(void**)) {
    const LaunchLock guard;
    M.error = l.error;
    M.error_bytes = l.error_bytes;
    M.grid = dim3(l.grid[0], l.grid[1], l.grid[2]);
    M.block = dim3(l.block[0], l.block[1], l.block[2]);
    const uint64_t threads = uint64_t(M.block.x) * M.block.y * M.block.z;
    if (!threads || M.block.x > MAX_THREADS || M.block.y > MAX_THREADS || M.block.z > 64 || threads > MAX_THREADS)
        return refuse("invalid launch configuration: a block has 1 to 1024 threads, at most 64 in z");
    if (!M.grid.x || !M.grid.y || !M.grid.z || M.grid.x > INT_MAX || M.grid.y > 65535 || M.grid.z > 65535)
        return refuse("invalid launch configuration: a grid has 1 to 2147483647 x 65535 x 65535 blocks");
    if (l.shared_bytes + static_shared_bytes() > MAX_SHARED_BYTES) return refuse("shared memory over 227 KiB");
    M.threads = unsigned(threads);
    M.warps = (M.threads + 31) / 32;
    M.body = body;
    M.args = l.args;
    M.schedule = l.schedule;
    M.random = l.seed * 0x9E3779B97F4A7C15ull + 1;
    if (!prepare()) return false;
    ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, l.shared_bytes);
    ASAN_POISON_MEMORY_REGION(dynamic_shared + l.shared_bytes, MAX_SHARED_BYTES - l.shared_bytes);
    const uint64_t blocks = uint64_t(M.grid.x) * M.grid.y * M.grid.z;
    uint64_t* order = nullptr;
    if (M.schedule == RANDOM) {
        order = static_cast<uint64_t*>(malloc(blocks * sizeof(uint64_t)));
        if (!order) return refuse("no memory for the order of so many blocks");
        for (uint64_t k = 0; k < blocks; ++k) order[k] = k;
        for (uint64_t k = blocks; k > 1; --k) std::swap(order[k - 1], order[random_below(k)]);
    }
    for (uint64_t k = 0; k < blocks && !M.failed; ++k) {
        const uint64_t i = M.schedule == RANDOM ? order[k] : M.schedule == REVERSE ? blocks - 1 - k : k;
        M.block_index = {unsigned(i % M.grid.x), unsigned(i / M.grid.x % M.grid.y),
                         unsigned(i / (uint64_t(M.grid.x) * M.grid.y))};
        run_block(l.shared_bytes);
    }
    free(order);
    for (unsigned i = 0; i < M.threads && !M.failed; ++i)
        if (canary(i) != CANARY)
            return refuse("a thread's local variables overflow the stack that the emulator gives it");
    return !M.failed;
}

template <class T>
using Value = std::remove_cv_t<std::remove_reference_t<T>>;

template <class... A, size_t... I>
EMU_RUNTIME inline void call(void (*kernel)(A...), void** args, std::index_sequence<I...>) {
    kernel(*static_cast<Value<A>*>(args[I])...);
}
template <auto kernel, class... A>
EMU_RUNTIME inline void unpack_and_call(void (*)(A...), void** args) {
    call<A...>(kernel, args, std::index_sequence_for<A...>{});
}
template <auto kernel>
EMU_RUNTIME inline void body(void** args) {
    unpack_and_call<kernel>(kernel, args);
}

// A parameter's kind (Pointer, pointer to Const, Float, Integer or Struct) and size, for the host to check.
struct Parameter {
    char kind;
    unsigned bytes;
};
template <class T>
constexpr Parameter parameter() {
    using V = Value<T>;
    if (std::is_pointer_v<V>) return {std::is_const_v<std::remove_pointer_t<V>> ? 'C' : 'P', sizeof(V)};
    if (std::is_floating_point_v<V>) return {'F', sizeof(V)};
    return {std::is_integral_v<V> || std::is_enum_v<V> ? 'I' : 'S', sizeof(V)};
}
template <class... A>
inline unsigned signature(void (*)(A...), Parameter* out) {
    const Parameter all[] = {parameter<A>()..., {0, 0}};
    if (out) memcpy(out, all, sizeof...(A) * sizeof *out);
    return sizeof...(A);
}

}  // namespace emu

#define EMU_EXPORT(kernel)                                                                                            \
    extern "C" __attribute__((visibility("default"))) int emu_launch_##kernel(const emu::Launch* l) {                 \
        return emu::launch(*l, &emu::body<&kernel>);                                                                  \
    }                                                                                                                 \
    extern "C" __attribute__((visibility("default"))) unsigned emu_signature_##kernel(emu::Parameter* out) {          \
        return emu::signature(&kernel, out);                                                                          \
    }
extern "C" __attribute__((visibility("default"), used)) inline unsigned long long emu_switches() {
    return emu::M.switches;
}

// ---- Built-in variables -------------------------------------------------------------------------------------------
#define threadIdx (static_cast<const uint3&>(emu::M.thread[emu::M.current]))
#define blockIdx (static_cast<const uint3&>(emu::M.block_index))
#define blockDim (static_cast<const dim3&>(emu::M.block))
#define gridDim (static_cast<const dim3&>(emu::M.grid))
constexpr int warpSize = 32;

// emulator.py replaces `extern __shared__ T name[]` by this in the text that it passes to g++.
#define EMU_DYNAMIC_SHARED(T, name) [[maybe_unused]] T* const name = reinterpret_cast<T*>(emu::dynamic_shared)

// ---- Barriers, votes, reductions, shuffles ------------------------------------------------------------------------
// A default argument is evaluated where the call is written, so errors know that line.
#define EMU_HERE emu::Site site = {__builtin_FILE(), __builtin_LINE()}

EMU_RUNTIME inline void __syncthreads(EMU_HERE) { emu::block_barrier(false, site); }
EMU_RUNTIME inline int __syncthreads_count(int predicate, EMU_HERE) { return emu::block_barrier(predicate, site); }
EMU_RUNTIME inline int __syncthreads_or(int predicate, EMU_HERE) { return emu::block_barrier(predicate, site) != 0; }
EMU_RUNTIME inline int __syncthreads_and(int predicate, EMU_HERE) { return emu::block_barrier(!predicate, site) == 0; }

EMU_RUNTIME inline void __syncwarp(unsigned mask, EMU_HERE) {
    emu::warp_collective<emu::Nothing>(emu::SYNCWARP, mask, 0, 0, site);
}
EMU_RUNTIME inline void __syncwarp(EMU_HERE) { __syncwarp(emu::M.warp[emu::self().warp].alive, site); }

EMU_RUNTIME inline unsigned __ballot_sync(unsigned mask, int predicate, EMU_HERE) {
    const unsigned bit = predicate ? 1u << emu::lane() : 0;
    return emu::reduce<unsigned, emu::either<unsigned>>(emu::BALLOT, mask, bit, site);
}
EMU_RUNTIME inline int __any_sync(unsigned mask, int predicate, EMU_HERE) {
    return emu::reduce<int, emu::either<int>>(emu::ANY, mask, predicate != 0, site);
}
EMU_RUNTIME inline int __all_sync(unsigned mask, int predicate, EMU_HERE) {
    return emu::reduce<int, emu::both<int>>(emu::ALL, mask, predicate != 0, site);
}

#define EMU_REDUCE(name, kind, combine, T)                                          \
    EMU_RUNTIME inline T __reduce_##name##_sync(unsigned mask, T value, EMU_HERE) { \
        return emu::reduce<T, emu::combine<T>>(emu::kind, mask, value, site);       \
    }
EMU_REDUCE(add, ADD, add, unsigned)
EMU_REDUCE(add, ADD, add, int)
EMU_REDUCE(min, MIN, lesser, unsigned)
EMU_REDUCE(min, MIN, lesser, int)
EMU_REDUCE(max, MAX, greater, unsigned)
EMU_REDUCE(max, MAX, greater, int)
EMU_REDUCE(and, AND, both, unsigned)
EMU_REDUCE(or, OR, either, unsigned)
EMU_REDUCE(xor, XOR, differ, unsigned)
#undef EMU_REDUCE

// Shuffles work in segments of `width` lanes. The hardware uses five bits of a distance. A lane that would read past
// its segment's end keeps its own value; xor may reach back into an earlier segment. `+value` turns types smaller than
// int into int.
template <class T>
EMU_RUNTIME inline auto __shfl_sync(unsigned mask, T value, int source, int width = 32, EMU_HERE) {
    const int first = emu::lane() & ~(width - 1);
    return emu::shuffle(emu::SHFL, mask, +value, first | (source & (width - 1)), site);
}
template <class T>
EMU_RUNTIME inline auto __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE) {
    const int lane = emu::lane(), distance = int(delta & 31);
    const int source = (lane & (width - 1)) >= distance ? lane - distance : lane;
    return emu::shuffle(emu::SHFL_UP, mask, +value, source, site);
}
template <class T>
EMU_RUNTIME inline auto __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, EMU_HERE) {
    const int lane = emu::lane(), distance = int(delta & 31);
    const int source = (lane & (width - 1)) + distance < width ? lane + distance : lane;
    return emu::shuffle(emu::SHFL_DOWN, mask, +value, source, site);
}
template <class T>
EMU_RUNTIME inline auto __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, EMU_HERE) {
    const int lane = emu::lane(), other = lane ^ (lane_mask & 31);
    const int source = other <= (lane | (width - 1)) ? other : lane;
    return emu::shuffle(emu::SHFL_XOR, mask, +value, source, site);
}

// ---- Atomics: relaxed, as on the GPU, and for the types that CUDA has ---------------------------------------------
namespace emu {
template <class T, class... Allowed>
constexpr bool one_of = (std::is_same_v<T, Allowed> || ...);
template <class T>
struct Same {   // not deduced, so the value is converted to the pointer's type
    using type = T;
};
template <class T, class Change>
inline T atomic_update(T* address, Change change) {
    T old, updated;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do updated = change(old);
    while (!__atomic_compare_exchange(address, &old, &updated, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
}  // namespace emu

#define EMU_ATOMIC(name, expression, ...)                                                              \
    template <class T>                                                                                 \
    inline T name(T* address, typename emu::Same<T>::type value) {                                     \
        static_assert(emu::one_of<T, __VA_ARGS__>, "CUDA has no " #name " of this type");              \
        return emu::atomic_update(address, [value](T old) -> T { return expression; });                \
    }
EMU_ATOMIC(atomicAdd, old + value, int, unsigned, unsigned long long, float, double)
EMU_ATOMIC(atomicSub, old - value, int, unsigned)
EMU_ATOMIC(atomicMin, value < old ? value : old, int, unsigned, long long, unsigned long long)
EMU_ATOMIC(atomicMax, old < value ? value : old, int, unsigned, long long, unsigned long long)
EMU_ATOMIC(atomicAnd, old & value, int, unsigned, unsigned long long)
EMU_ATOMIC(atomicOr, old | value, int, unsigned, unsigned long long)
EMU_ATOMIC(atomicXor, old ^ value, int, unsigned, unsigned long long)
EMU_ATOMIC(atomicExch, (void(old), value), int, unsigned, unsigned long long, float)
#undef EMU_ATOMIC
template <class T>
inline T atomicCAS(T* address, typename emu::Same<T>::type compare, typename emu::Same<T>::type value) {
    static_assert(emu::one_of<T, int, unsigned, unsigned long long, unsigned short>,
                  "CUDA has no atomicCAS of this type");
    __atomic_compare_exchange_n(address, &compare, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return compare;
}

// All fibers run on one host thread, so a fence only has to restrain the compiler.
EMU_RUNTIME inline void __threadfence_block() {
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
    EMU_ACQUIRE(&emu::M.args);
    EMU_RELEASE(&emu::M.args);
}
EMU_RUNTIME inline void __threadfence() { __threadfence_block(); }

// ---- Loads and stores with cache hints ----------------------------------------------------------------------------
template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline T __ldcg(const T* address) { return *address; }
template <class T> inline void __stcs(T* address, typename emu::Same<T>::type value) { *address = value; }
template <class T> inline void __stcg(T* address, typename emu::Same<T>::type value) { *address = value; }

// ---- Integers -----------------------------------------------------------------------------------------------------
// The result has the type that C's arithmetic gives, like CUDA's overloads; of a NaN and a number, it is the number.
template <class A, class B>
constexpr auto max(A a, B b) -> decltype(a + b) {
    using C = decltype(a + b);
    if constexpr (std::is_floating_point_v<C>) return C(a) != C(a) || C(a) < C(b) ? C(b) : C(a);
    return C(a) < C(b) ? C(b) : C(a);
}
template <class A, class B>
constexpr auto min(A a, B b) -> decltype(a + b) {
    using C = decltype(a + b);
    if constexpr (std::is_floating_point_v<C>) return C(a) != C(a) || C(b) < C(a) ? C(b) : C(a);
    return C(b) < C(a) ? C(b) : C(a);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(uint64_t(a) * b >> 32); }
inline int __mulhi(int a, int b) { return int(int64_t(a) * b >> 32); }
inline unsigned __brev(unsigned x) {
    x = (x >> 1 & 0x55555555u) | (x & 0x55555555u) << 1;
    x = (x >> 2 & 0x33333333u) | (x & 0x33333333u) << 2;
    x = (x >> 4 & 0x0F0F0F0Fu) | (x & 0x0F0F0F0Fu) << 4;
    return __builtin_bswap32(x);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}

// PTX `prmt.b32` in its default mode: each nibble of `selector` picks a byte of b:a, and its top bit replicates that
// byte's sign instead.
inline unsigned emu_prmt(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = uint64_t(b) << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i, selector >>= 4) {
        const int8_t byte = int8_t(bytes >> (selector & 7) * 8);
        result |= unsigned(uint8_t(selector & 8 ? byte >> 7 : byte)) << i * 8;
    }
    return result;
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) { return emu_prmt(a, b, selector & 0x7777); }

// ---- Two 16-bit numbers in a register, and Hopper's DPX -----------------------------------------------------------
namespace emu {
using s16x2 = int16_t __attribute__((vector_size(4)));
using u16x2 = uint16_t __attribute__((vector_size(4)));
template <class V> inline unsigned max2(unsigned a, unsigned b) {
    const V x = bits_of<V>(a), y = bits_of<V>(b);
    return bits_of<unsigned>(x > y ? x : y);
}
template <class V> inline unsigned min2(unsigned a, unsigned b) {
    const V x = bits_of<V>(a), y = bits_of<V>(b);
    return bits_of<unsigned>(x < y ? x : y);
}
}  // namespace emu

inline unsigned __vadd2(unsigned a, unsigned b) {
    return emu::bits_of<unsigned>(emu::bits_of<emu::u16x2>(a) + emu::bits_of<emu::u16x2>(b));
}
inline unsigned __vsub2(unsigned a, unsigned b) {
    return emu::bits_of<unsigned>(emu::bits_of<emu::u16x2>(a) - emu::bits_of<emu::u16x2>(b));
}
inline unsigned __vmaxs2(unsigned a, unsigned b) { return emu::max2<emu::s16x2>(a, b); }
inline unsigned __vmaxu2(unsigned a, unsigned b) { return emu::max2<emu::u16x2>(a, b); }
inline unsigned __vmins2(unsigned a, unsigned b) { return emu::min2<emu::s16x2>(a, b); }
inline unsigned __vminu2(unsigned a, unsigned b) { return emu::min2<emu::u16x2>(a, b); }
inline unsigned __vcmpgtu2(unsigned a, unsigned b) {
    return emu::bits_of<unsigned>(emu::bits_of<emu::u16x2>(a) > emu::bits_of<emu::u16x2>(b));
}

inline int __viaddmax_s32(int a, int b, int c) { return max(int(unsigned(a) + unsigned(b)), c); }
inline unsigned __viaddmax_u32(unsigned a, unsigned b, unsigned c) { return max(a + b, c); }
inline int __vimax3_s32(int a, int b, int c) { return max(max(a, b), c); }
inline unsigned __vimax3_u32(unsigned a, unsigned b, unsigned c) { return max(max(a, b), c); }
inline unsigned __viaddmax_s16x2(unsigned a, unsigned b, unsigned c) { return __vmaxs2(__vadd2(a, b), c); }
inline unsigned __viaddmax_u16x2(unsigned a, unsigned b, unsigned c) { return __vmaxu2(__vadd2(a, b), c); }
inline unsigned __vimax3_s16x2(unsigned a, unsigned b, unsigned c) { return __vmaxs2(__vmaxs2(a, b), c); }
inline unsigned __vimax3_u16x2(unsigned a, unsigned b, unsigned c) { return __vmaxu2(__vmaxu2(a, b), c); }

// The maximum of fp16 numbers, used as the maximum of small integers. Bits up to 0x7BFF are finite, non-negative
// numbers, and sort like integers. Larger ones are infinite, NaN or negative, and a GPU would give another result.
inline unsigned emu_max_f16x2_bits(unsigned a, unsigned b, EMU_HERE) {
    if (emu::max2<emu::u16x2>(emu::max2<emu::u16x2>(a, b), 0x7BFF7BFFu) != 0x7BFF7BFFu)
        emu::fail("emu_max_f16x2_bits: a half over 0x7BFF is no finite positive fp16 number", site);
    return emu::max2<emu::u16x2>(a, b);
}

// Conversions from and to fp16, for `cvt.f32.f16` and `cvt.rn.f16.f32`.
inline float emu_number_of_f16(unsigned short bits) {
    const unsigned sign = unsigned(bits & 0x8000) << 16, rest = bits & 0x7fff;
    if (rest < 0x0400) return emu::bits_of<float>(sign | emu::bits_of<unsigned>(float(rest) * 0x1p-24f));
    return emu::bits_of<float>(sign | ((rest << 13) + (rest < 0x7c00 ? 112u << 23 : 224u << 23)));
}
inline unsigned short emu_f16_of_number(float x) {
    const unsigned bits = emu::bits_of<unsigned>(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return 0x7fff;
    if (rest >= 0x477ff000) return sign | 0x7c00;  // 65,520 and more round to infinity
    if (rest < 0x38800000) return sign | unsigned(rintf(emu::bits_of<float>(rest) * 0x1p24f));  // subnormal
    return sign | (rest + 0xfff + (rest >> 13 & 1) - (112u << 23)) >> 13;
}

// ---- Floats: compiled without contraction, so operations with CUDA's explicit rounding are the plain ones ---------
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

inline int __float_as_int(float x) { return emu::bits_of<int>(x); }
inline unsigned __float_as_uint(float x) { return emu::bits_of<unsigned>(x); }
inline float __int_as_float(int x) { return emu::bits_of<float>(x); }
inline float __uint_as_float(unsigned x) { return emu::bits_of<float>(x); }
