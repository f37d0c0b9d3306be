# For mypy, which cannot read where an editable install puts the package: of it, vllm_api.py alone has types.
from typing import Any

def __getattr__(name: str) -> Any: ...
