"""Every layer of the supported networks in plain float64 NumPy, after the formulas, slow and short.

Shares no code with the network under test: it takes config.toml as TOML's tables, and tensors by dorado's names.

Dimensions: N rows, S samples, T time steps, C channels, F features, O outputs, K kernel, H heads, D features of a head.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def sigmoid(x: F64) -> F64:
    return 1 / (1 + np.exp(-x))


def silu(x: F64) -> F64:
    return x * sigmoid(x)


def convolution(x_NCS: F64, weight_OCK: F64, bias_O: F64, stride: int) -> F64:
    """y[o, t] = b[o] + sum over c, k of w[o, c, k] x[c, stride t + k - K // 2], x being 0 outside."""
    half = weight_OCK.shape[2] // 2
    padded = np.pad(x_NCS, ((0, 0), (0, 0), (half, half)))
    windows_NCTK = np.lib.stride_tricks.sliding_window_view(padded, weight_OCK.shape[2], axis=2)[:, :, ::stride]
    return np.einsum("ock,nctk->not", weight_OCK, windows_NCTK, optimize=True) + bias_O[:, None]


def batch_norm(x_NCT: F64, gain_C: F64, shift_C: F64, mean_C: F64, variance_C: F64) -> F64:
    """(x - mean) / sqrt(variance + 1e-5) gain + shift, a channel at a time (Ioffe and Szegedy, 2015)."""
    centred = x_NCT - mean_C[:, None]
    return centred / np.sqrt(variance_C + 1e-5)[:, None] * gain_C[:, None] + shift_C[:, None]


def lstm(x_TNF: F64, weight_ih: F64, weight_hh: F64, bias: F64, reverse: bool) -> F64:
    """c = f c + i g; h = o tanh(c); i, f, o = sigmoid, g = tanh of W x + U h + b, stacked as i, f, g, o."""
    T, N, F = x_TNF.shape
    hidden, cell, y_TNF = np.zeros((N, F)), np.zeros((N, F)), np.empty((T, N, F))
    for t in reversed(range(T)) if reverse else range(T):
        i, f, g, o = np.split(x_TNF[t] @ weight_ih.T + hidden @ weight_hh.T + bias, 4, axis=1)
        cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
        hidden = sigmoid(o) * np.tanh(cell)
        y_TNF[t] = hidden
    return y_TNF


def low_rank_lstm(x_TNF: F64, down: tuple[F64, F64], up: tuple[F64, F64], bias: F64, reverse: bool, hard: bool) -> F64:
    """An LSTM whose matrices are U D; with hard gates, sigmoid is 0.2 x + 0.5 and the tanh of g is x, both cut off."""
    if not hard:
        return lstm(x_TNF, up[0] @ down[0], up[1] @ down[1], bias, reverse)
    T, N, F = x_TNF.shape
    hidden, cell, y_TNF = np.zeros((N, F)), np.zeros((N, F)), np.empty((T, N, F))
    for t in reversed(range(T)) if reverse else range(T):
        gates = x_TNF[t] @ down[0].T @ up[0].T + hidden @ down[1].T @ up[1].T + bias
        i, f, g, o = np.split(gates, 4, axis=1)
        i, f, o = (np.minimum(np.maximum(0.2 * gate + 0.5, 0), 1) for gate in (i, f, o))
        cell = f * cell + i * np.minimum(np.maximum(g, -1), 1)
        hidden = o * np.tanh(cell)
        y_TNF[t] = hidden
    return y_TNF


def rms_norm(x: F64, weight_F: F64) -> F64:
    """x / sqrt(mean of x squared over features + 1e-5) w (Zhang and Sennrich, 2019)."""
    return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-5) * weight_F


def rope(x_NTHD: F64) -> F64:
    """Feature pair (i, i + D / 2) of step t, as a complex number, times exp(1j t 10000^(-2 i / D))."""
    T, D = x_NTHD.shape[1], x_NTHD.shape[3]
    points = x_NTHD[..., : D // 2] + 1j * x_NTHD[..., D // 2 :]
    angles = np.arange(T)[:, None] * 10_000.0 ** (-2 * np.arange(D // 2) / D)
    turned = points * np.exp(1j * angles)[None, :, None]
    return np.concatenate((turned.real, turned.imag), axis=-1)


def attention(x_NTF: F64, qkv_weight: F64, out_weight: F64, out_bias: F64, heads: int, window: tuple[int, int]) -> F64:
    """softmax(q k^T / sqrt(D)) v over the keys from t - window[0] to t + window[1], key by key."""
    N, T, F = x_NTF.shape
    qkv = (x_NTF @ qkv_weight.T).reshape(N, T, 3, heads, F // heads)
    q_NTHD, k_NTHD, v_NTHD = rope(qkv[:, :, 0]), rope(qkv[:, :, 1]), qkv[:, :, 2]
    mixed = np.empty_like(v_NTHD)
    for t in range(T):
        seen = slice(max(t - window[0], 0), t + window[1] + 1)
        logits = np.einsum("nhd,nshd->nhs", q_NTHD[:, t], k_NTHD[:, seen]) / np.sqrt(F // heads)
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed[:, t] = np.einsum("nhs,nshd->nhd", weights, v_NTHD[:, seen])
    return mixed.reshape(N, T, F) @ out_weight.T + out_bias


def swiglu(x: F64, fc1: F64, fc2: F64) -> F64:
    """fc2 (silu(gate) y); y and gate are the first and second half of fc1 x (Shazeer, 2020)."""
    y, gate = np.split(x @ fc1.T, 2, axis=-1)
    return (silu(gate) * y) @ fc2.T


def upsample(x_NTF: F64, weight: F64, bias: F64) -> F64:
    """A step's linear features, cut into as many steps as they are times wider."""
    N, _, F = x_NTF.shape
    return (x_NTF @ weight.T + bias).reshape(N, -1, F)


def reference_scores(config: dict[str, Any], tensors: dict[str, npt.NDArray[np.float32]], batch_NS: F64) -> F64:
    """Scores of a batch, (T, N, C), of a model of any format, its batch norms fused."""
    weights = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x_NCS = batch_NS.astype(np.float64)[:, None]
    if "encoder" in config.get("model", {}):
        return _transformer(config["model"]["encoder"], weights, x_NCS)
    if "sublayers" in config["encoder"]:
        return _listed(config["encoder"]["sublayers"], weights, x_NCS)
    return _v3(config["encoder"], weights, x_NCS)


def _conv(weights: dict[str, F64], name: str, x_NCS: F64, stride: int) -> F64:
    return convolution(x_NCS, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], stride)


def _lstm(weights: dict[str, F64], name: str, x_TNF: F64, reverse: bool) -> F64:
    parts = {part: weights[f"{name}.rnn.{part}_l0"] for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
    return lstm(x_TNF, parts["weight_ih"], parts["weight_hh"], parts["bias_ih"] + parts["bias_hh"], reverse)


def _v3(encoder: dict[str, Any], weights: dict[str, F64], x_NCS: F64) -> F64:
    for index, stride in enumerate((1, 1, encoder["stride"])):
        x_NCS = silu(_conv(weights, str(index), x_NCS, stride))
    x_TNF = x_NCS.transpose(2, 0, 1)
    for index in range(5):
        x_TNF = _lstm(weights, str(4 + index), x_TNF, reverse=index in (0, 2, 4))
    return np.tanh(x_TNF @ weights["9.linear.weight"].T + weights["9.linear.bias"]) * encoder["scale"]


def _listed(layers: list[dict[str, Any]], weights: dict[str, F64], x: F64) -> F64:
    number = 0
    for layer in layers:
        name, kind = str(number), layer["type"]
        number += kind != "clamp"  # which dorado does not number
        if kind == "convolution":
            x = {"swish": silu, "tanh": np.tanh}[layer["activation"]](_conv(weights, name, x, layer["stride"]))
        elif kind == "clamp":
            x = np.clip(x, layer["min"], layer["max"])
        elif kind == "permute":
            x = x.transpose(layer["dims"])
        elif kind in ("flstm", "flstm_softout"):
            down, up = (
                (weights[f"{name}.rnn.{side}_weight_ih"], weights[f"{name}.rnn.{side}_weight_hh"])
                for side in ("dn", "up")
            )
            bias = weights[f"{name}.rnn.up_bias_ih"] + weights[f"{name}.rnn.up_bias_hh"]
            x = low_rank_lstm(x, down, up, bias, bool(layer["reverse"]), kind == "flstm_softout")
        elif kind == "lstm":
            x = _lstm(weights, name, x, bool(layer["reverse"]))
        else:
            x = x @ weights[f"{name}.linear.weight"].T + weights.get(f"{name}.linear.bias", np.zeros(1))
            if layer.get("activation") == "tanh":
                x = np.tanh(x) * layer["scale"]
    return x


def _transformer(encoder: dict[str, Any], weights: dict[str, F64], x: F64) -> F64:
    for index, layer in enumerate(layer for layer in encoder["conv"]["sublayers"] if layer["type"] == "convolution"):
        x = silu(_conv(weights, f"conv.{index}", x, layer["stride"]))
    x_NTF, layer = x.transpose(0, 2, 1), encoder["transformer_encoder"]["layer"]
    for index in range(encoder["transformer_encoder"]["depth"]):
        own = {
            name.removeprefix(f"transformer_encoder.{index}."): tensor
            for name, tensor in weights.items()
            if name.startswith(f"transformer_encoder.{index}.")
        }
        attended = attention(
            x_NTF,
            own["self_attn.Wqkv.weight"],
            own["self_attn.out_proj.weight"],
            own["self_attn.out_proj.bias"],
            layer["nhead"],
            tuple(layer["attn_window"]),
        )
        x_NTF = rms_norm(attended + layer["deepnorm_alpha"] * x_NTF, own["norm1.weight"])
        mixed = swiglu(x_NTF, own["ff.fc1.weight"], own["ff.fc2.weight"])
        x_NTF = rms_norm(mixed + layer["deepnorm_alpha"] * x_NTF, own["norm2.weight"])
    x_NTF = upsample(x_NTF, weights["upsample.linear.weight"], weights["upsample.linear.bias"])
    return (x_NTF @ weights["crf.linear.weight"].T).transpose(1, 0, 2) * encoder["crf"]["scale"]
