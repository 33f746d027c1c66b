"""What machines can do: a small table of GPUs with its sources, and the shares of it that training reaches.

Rates are those of data sheets, without sparsity. Prices are of one hour on demand, as listed by the sources on their days: they
differ by a factor of four between sellers, so a user's own (`hardware.price_per_gpu_hour`) goes first.
"""

from dataclasses import dataclass

GB = 1e9


@dataclass(frozen=True)
class GPU:
    """One GPU.

    Args:
        memory: Bytes.
        flops: bfloat16 operations a second (of older ones float16), dense.
        float32: The same in float32, outside of the tensor cores.
        capability: CUDA's compute capability: from 8.0 on there is bfloat16.
        bandwidth: Of its memory, bytes a second.
        link: To the other GPUs of its machine, bytes a second in one direction.
        watts: At full load.
        price: Dollars an hour, (least, most) that was listed; None: no source.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float
    watts: float
    float32: float
    capability: float = 8.0
    price: tuple[float, float] | None = None

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16; an older one emulates that, many times slower than float32."""
        return self.capability >= 8.0

    def rate(self, precision: str, *, tf32: bool = False) -> float:
        """Operations a second of products in a precision; TF32 is half as fast as bfloat16."""
        if precision == "bfloat16":
            return self.flops if self.has_bfloat16 else self.float32 / 2
        return self.flops / 2 if tf32 and self.has_bfloat16 else self.float32


# As of January 2026. Sources: NVIDIA's data sheets; prices: aihardwareindex.com of 2025-12-31 (least), and what an H100 hour cost at
# most on one day of 2026.
GPUS: dict[str, GPU] = {
    "v100-32": GPU(32 * 2**30, 125e12, 900 * GB, 150 * GB, 300, 15.7e12, 7.0),
    "t4": GPU(15 * 2**30, 65e12, 320 * GB, 16 * GB, 70, 8.1e12, 7.5),
    "a10": GPU(23 * 2**30, 125e12, 600 * GB, 32 * GB, 150, 31.2e12, 8.6),
    "a6000": GPU(48 * 2**30, 155e12, 768 * GB, 32 * GB, 300, 38.7e12, 8.6),
    "l4": GPU(23 * 2**30, 121e12, 300 * GB, 32 * GB, 72, 30.3e12, 8.9),
    "l40s": GPU(45 * 2**30, 362e12, 864 * GB, 32 * GB, 350, 91.6e12, 8.9, (0.87, 0.87)),
    "rtx-3090": GPU(24 * 2**30, 71e12, 936 * GB, 16 * GB, 350, 35.6e12, 8.6),
    "rtx-4090": GPU(24 * 2**30, 165e12, 1008 * GB, 32 * GB, 450, 82.6e12, 8.9),
    "a100-40": GPU(40 * 2**30, 312e12, 1555 * GB, 300 * GB, 400, 19.5e12, 8.0),
    "a100": GPU(80 * 2**30, 312e12, 2039 * GB, 300 * GB, 400, 19.5e12, 8.0, (1.35, 1.35)),
    "h100": GPU(80 * 2**30, 989e12, 3350 * GB, 450 * GB, 700, 67.0e12, 9.0, (2.25, 12.29)),
    "h200": GPU(141 * 2**30, 989e12, 4800 * GB, 450 * GB, 700, 67.0e12, 9.0),
    "b200": GPU(180 * 2**30, 2250e12, 8000 * GB, 900 * GB, 1000, 75.0e12, 10.0),
}

# Shares of the table's rates. Training and scoring: what the products reach, kernels between them included. Decoding: of the bandwidth.
MFU_TRAIN, MFU_SCORE, BANDWIDTH_SHARE = 0.35, 0.40, 0.60
LAYER_LAUNCH_S = 0.9e-3  # a forward launches some thirty kernels a layer, however little they do; a backward takes as long
# A layer's small kernels (norms, rotary, the cache) in a decoding step that is replayed as a CUDA graph, beside what it reads: measured on
# one H100 by `make gpu-check GPU=rollout`: 134 M weights, 12 layers, 64 rows 2.0 ms a step; 1.2 B, 16 layers, 256 rows 9.4 ms. Launched
# one by one: 7.9 ms and 13.5 ms.
GRAPH_LAYER_S = 0.15e-3
TRAINER_STEP_S = 0.010  # of a CPU: what TRL's trainer does around a step, and events; of the demo's SFT and RM, 1 to 9 ms were left
VLLM_STEP_S = 4e-3  # of a vLLM server: scheduling, sampling, and kernels that are launched as one graph
HANDOVER = 2 * GB  # bytes a second at which a vLLM server takes over new weights, by files in memory
NETWORK = 25 * GB  # between machines, for each GPU: 200 Gbit/s; bytes a second
SPREAD_TABLE, SPREAD_MEASURED = 2.0, 1.25  # times and by which the time of a whole run may be off: see this room's README

# Beside what tensors hold: CUDA's context and its libraries' workspaces; NCCL's buffers with several GPUs.
CONTEXT_BYTES, NCCL_BYTES = 0.9 * 2**30, 1.0 * 2**30
GPU_ALLOCATOR = 1.05  # blocks are rounded up and not all reused
TIGHT = 0.80  # an estimate below this share never ran out in 454 runs (Fujii et al. 2024, arXiv 2411.06465)
