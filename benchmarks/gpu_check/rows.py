"""All rows, in their order. Part A needs PyTorch alone, part B vLLM; one makes what both need."""

from qwen_vqa.benchmarks.gpu_check.row import Row

_HERE = "qwen_vqa.benchmarks.gpu_check"
HOLDS = (("full", "bfloat16"), ("full", "float16"), ("8bit", "bfloat16"), ("4bit", "bfloat16"))
LENGTHS = (512, 2048)  # tokens a sample
NAMES = {"full": "whole", "8bit": "8-bit", "4bit": "4-bit"}

ROWS = (
    Row("reference, float32", "A", f"{_HERE}.reference:equals_the_cpu", 90, {"dtype": "float32"}),
    Row("reference, bfloat16", "A", f"{_HERE}.reference:equals_the_cpu", 90, {"dtype": "bfloat16"}),
    Row("reference, float16", "A", f"{_HERE}.reference:equals_the_cpu", 90, {"dtype": "float16"}),
    Row("the demo's answers", "A", f"{_HERE}.reference:same_answers", 120),
    Row("a checkpoint of the shape", "AB", f"{_HERE}.training:make_checkpoint", 180),
    *(
        Row(
            f"train, {NAMES[load_in]} {precision}, {length} tokens",
            "A",
            f"{_HERE}.training:steps",
            90,
            {"load_in": load_in, "precision": precision, "length": length},
        )
        for length in LENGTHS
        for load_in, precision in HOLDS
    ),
    *(
        Row(f"transformers' generate, {batch} at once", "A", f"{_HERE}.reference:generate", 90, {"batch": batch})
        for batch in (1, 32)
    ),
    Row("train the demo's adapter", "A", f"{_HERE}.training:demo_adapter", 200),
    Row("calibrate a layer to int4", "A", f"{_HERE}.calibration:one_layer", 150),
    Row("serve and verify the demo", "B", f"{_HERE}.serving:verify", 180),
    *(
        Row(f"quantise and verify, {scheme}", "B", f"{_HERE}.serving:quantised", 180, {"scheme": scheme})
        for scheme in ("int8", "int4", "fp8")
    ),
    *(Row(f"load, {users} users", "B", f"{_HERE}.serving:load", 150, {"users": users}) for users in (1, 32, 256)),
    Row("a second question's first token", "B", f"{_HERE}.serving:second_question", 150),
)
