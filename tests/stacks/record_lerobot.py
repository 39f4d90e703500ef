"""Write down the surface of LeRobot that `stacks.lerobot` leans on, or with --check compare with what was recorded.

Run by `lerobot.sh` in an environment with the real LeRobot; the record is what `lerobot_stand_in.py` is held to.
"""

import dataclasses
import enum
import importlib.metadata
import inspect
import json
import sys
from pathlib import Path

RECORD = Path(__file__).with_name("lerobot_surface.json")


def plain(value):
    """Return a default as JSON has it."""
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value


def fields(config):
    """Name and default of every setting."""
    found = {}
    for field in dataclasses.fields(config):
        made = field.default_factory() if field.default is dataclasses.MISSING else field.default
        found[field.name] = plain(made)
    return found


def parameters(function):
    """Names of a function's parameters, stars included."""
    marks = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [marks.get(p.kind, "") + p.name for p in inspect.signature(function).parameters.values()]


def surface():
    """What is imported and overridden, and what is called."""
    from lerobot import configs, processor
    from lerobot.policies.act import modeling_act
    from lerobot.policies.diffusion import modeling_diffusion
    from lerobot.policies.pretrained import PreTrainedPolicy

    methods = {}
    for kind, names in {
        PreTrainedPolicy: ["save_pretrained", "from_pretrained", "get_optim_params"],
        modeling_act.ACTPolicy: ["__init__", "forward", "predict_action_chunk", "select_action", "get_optim_params"],
        modeling_diffusion.DiffusionPolicy: ["__init__", "forward", "predict_action_chunk", "select_action"],
        modeling_diffusion.SpatialSoftmax: ["__init__", "forward"],
        modeling_diffusion.DiffusionRgbEncoder: ["__init__", "forward"],
        configs.PreTrainedConfig: ["from_pretrained", "register_subclass", "get_choice_class", "get_known_choices"],
    }.items():
        methods |= {f"{kind.__name__}.{name}": parameters(getattr(kind, name)) for name in names}
    methods["make_default_pre_post_processors"] = parameters(processor.make_default_pre_post_processors)
    kinds = {"ACTConfig": modeling_act.ACTConfig, "DiffusionConfig": modeling_diffusion.DiffusionConfig}
    return {
        "version": importlib.metadata.version("lerobot"),
        "fields": {name: fields(kind) for name, kind in kinds.items()},
        "parameters": methods,
        "NormalizationMode": [mode.name for mode in configs.NormalizationMode],
    }


if __name__ == "__main__":
    text = json.dumps(surface(), indent=1) + "\n"
    if "--check" in sys.argv:
        assert text == RECORD.read_text(), "LeRobot's surface is not what was recorded; run this without --check"
    else:
        RECORD.write_text(text)
