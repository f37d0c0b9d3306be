"""All rows, in their order. Part A needs PyTorch alone, part B vLLM; one makes what both need."""

from qwen_vqa.benchmarks.gpu_check.check_row import CheckRow

_HERE = "qwen_vqa.benchmarks.gpu_check"
HOLDS = (("full", "bfloat16"), ("full", "float16"), ("8bit", "bfloat16"), ("4bit", "bfloat16"))
LENGTHS = (512, 2048)  # tokens a sample
NAMES = {"full": "whole", "8bit": "8-bit", "4bit": "4-bit"}

ROWS = (
    CheckRow("reference, float32", "A", f"{_HERE}.reference_check:equals_the_cpu", 90, {"dtype": "float32"}),
    CheckRow("reference, bfloat16", "A", f"{_HERE}.reference_check:equals_the_cpu", 90, {"dtype": "bfloat16"}),
    CheckRow("reference, float16", "A", f"{_HERE}.reference_check:equals_the_cpu", 90, {"dtype": "float16"}),
    CheckRow("the demo's answers", "A", f"{_HERE}.reference_check:same_answers", 120),
    CheckRow("a checkpoint of the shape", "AB", f"{_HERE}.training_check:make_checkpoint", 180),
    *(
        CheckRow(
            f"train, {NAMES[load_in]} {precision}, {length} tokens",
            "A",
            f"{_HERE}.training_check:steps",
            90,
            {"load_in": load_in, "precision": precision, "length": length},
        )
        for length in LENGTHS
        for load_in, precision in HOLDS
    ),
    *(
        CheckRow(
            f"transformers' generate, {batch} at once", "A", f"{_HERE}.reference_check:generate", 90, {"batch": batch}
        )
        for batch in (1, 32)
    ),
    CheckRow("train the demo's adapter", "A", f"{_HERE}.training_check:demo_adapter", 200),
    CheckRow("calibrate a layer to int4", "A", f"{_HERE}.calibration_check:one_layer", 150),
    CheckRow("serve and verify the demo", "B", f"{_HERE}.serving_check:verify", 180),
    *(
        CheckRow(f"quantise and verify, {scheme}", "B", f"{_HERE}.serving_check:quantised", 180, {"scheme": scheme})
        for scheme in ("int8", "int4", "fp8")
    ),
    *(
        CheckRow(f"load, {users} users", "B", f"{_HERE}.serving_check:load", 150, {"users": users})
        for users in (1, 32, 256)
    ),
    CheckRow("a second question's first token", "B", f"{_HERE}.serving_check:second_question", 150),
)
