"""Print the digests of everything in `study` as JSON. Needs nothing but the standard library.

`python digests.py > digests.json` accepts the present ones; that makes every result stored so far stale.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

# The package without its front door, which leads to far more than identity needs.
sys.modules["ezpyp"] = ModuleType("ezpyp")
sys.modules["ezpyp"].__path__ = [str(HERE.parent.parent / "ezpyp")]

study = import_module("study")
fingerprint = import_module("ezpyp.identity.fingerprint")


def digests() -> dict[str, dict[str, str]]:
    codes = {name: fingerprint.follow(function) for name, function in study.FUNCTIONS.items()}
    fallen_back = {name: code.fallback for name, code in codes.items() if code.fallback}
    if fallen_back:
        raise SystemExit(f"not found in their sources: {fallen_back}")
    return {
        "values": {name: fingerprint.digest_value(value).hex() for name, value in study.VALUES.items()},
        "functions": {name: code.digest for name, code in codes.items()},
    }


if __name__ == "__main__":
    json.dump(digests(), sys.stdout, indent=2)
    print()
