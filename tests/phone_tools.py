"""What tools for phones print, and scripts that stand for them."""

from __future__ import annotations

from pathlib import Path

# What benchmark_model prints since 2.16: percentiles, and a prefix on each line.
LITE_NEW = """INFO: STARTING!
INFO: Num threads: [4]
INFO: Graph: [model.tflite]
INFO: Initialized session in 4.125ms.
INFO: Running benchmark for at least 5 iterations and at least 0.5 seconds but terminate if \
exceeding 150 seconds.
INFO: count=163 first=9125 curr=3010 min=2950 max=9125 avg=3068.5 std=480 p5=2960 median=3010 \
p95=3400

INFO: Running benchmark for at least 50 iterations and at least 3 seconds but terminate if \
exceeding 150 seconds.
INFO: count=1003 first=3001 curr=2999 min=2940 max=4200 avg=2990.25 std=75 p5=2950 median=2981 \
p95=3100

INFO: Inference timings in us: Init: 4125, First inference: 9125, Warmup (avg): 3068.5, \
Inference (avg): 2990.25
INFO: Memory footprint delta from the start of the tool (MB): init=3.25 overall=8.5
INFO: Overall peak memory footprint (MB) via periodic monitoring: 21.75
"""
# And in 2.4: no percentiles, an exponent in large means, one run of warm-up without a spread.
LITE_OLD = """STARTING!
count=1 curr=3512391

count=12 first=2990275 curr=2913402 min=2000000 max=4189954 avg=2.95034e+06 std=1109798

Inference timings in us: Init: 17187, First inference: 3512391, Warmup (avg): 3.51239e+06, \
Inference (avg): 2.95034e+06
Peak memory footprint (MB): init=4.5 overall=46
"""
PROFILE = """Input Log File Location: out/qnn-profiling-data_0.log
Log File Created: Mon Jan  5 10:00:00 2026
Time Scale: 1e-06

Qnn Init/Prepare/Finalize/De-Init/Execute/Lib-Load Statistics:
------------------------------------------------------------
Init Stats:
-----------
    NetRun:  31250 us
    Backend (RPC (load binary) time): 4100 us

De-Init Stats:
--------------
    NetRun:  1500 us

Execute Stats (Average):
------------------------
Total Inference Time:
---------------------
Graph 0 (model):
    NetRun:  1250 us
    Backend (Number of HVX threads used): 4 count
    Backend (RPC (execute) time): 1200 us
    Backend (Accelerator (execute) time (cycles)): 900000 cycles
    Backend (Accelerator (execute) time): 875 us
    Backend (QNN (execute) time): 1240 us

Execute Stats (Overall):
------------------------
    NetRun IPS:  700.5 inf/sec
"""

SDK_LIBRARIES = (
    "aarch64-android/libQnnHtp.so",
    "aarch64-android/libQnnHtpV75Stub.so",
    "aarch64-android/libQnnSystem.so",
    "hexagon-v75/unsigned/libQnnHtpV75Skel.so",
)


def unpacked_sdk(folder: Path, program: str = "") -> Path:
    """Returns qnn-net-run in a folder laid out as Qualcomm's SDK; its libraries are empty."""
    for name in SDK_LIBRARIES:
        (folder / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "lib" / name).touch()
    (folder / "bin" / "aarch64-android").mkdir(parents=True)
    return tool(folder / "bin" / "aarch64-android" / "qnn-net-run", program)


def tool(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path
