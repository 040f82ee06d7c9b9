from pathlib import Path
from wpk.runtime.parts import Parts


def load(path: Path, any_target: bool = False) -> Parts:
    raise NotImplementedError
