"""All settings of a run in one place, and how the command line, a YAML file and a preset make them.

Values come from, each over the one before: the dataclasses' defaults, the preset's file in medsora/configs, `--config`
files in their order, and options. `denoiser.learning_rate` in a file is `--denoiser.learning_rate` on the command line.
"""

import argparse
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path

import yaml

from medsora.alignment import AlignmentSettings
from medsora.data.settings import PrepareSettings
from medsora.diffusion import DiffusionSettings
from medsora.errors import UserError
from medsora.training.settings import DenoiserSettings, EvaluationSettings, SamplingSettings, VAESettings

PRESETS = ("tiny", "S", "B", "L", "XL")
DEFAULT_PRESET = "tiny"

# A run may go on under other values of these: they decide how far, how often and where, not what is computed.
FREE = ("output", "max_steps", "device", "license")
FREE_ENDINGS = ("log_every", "checkpoint_every", "keep_checkpoints", "sample_every", "max_bad_steps")

USAGE = "python -m medsora.train [--preset NAME] [--data SOURCE] [--output FOLDER] [options]"
DESCRIPTION = """\
Trains the video VAE and then the denoiser on its latents, samples, and writes a report. Without an option it trains the
preset "tiny" on the ultrasound cine that pydicom ships, into runs/tiny. The same command again resumes where the run
stopped. Examples:

  python -m medsora.train --dry-run
  python -m medsora.train --data my_videos/ --output runs/mine --denoiser.steps 5000
  python -m medsora.train --preset S --data my_videos/ --vae.pretrained models/CogVideoX-2b
  python -m medsora.train --config my_settings.yaml --print_config"""


@dataclass
class TrainSettings:
    """Everything that decides what a training run does; its parts are described beside the code they configure."""

    data: str = "builtin:cine"
    preset: str = DEFAULT_PRESET
    output: str = ""
    seed: int = 0
    max_steps: int | None = None
    device: str = "auto"
    license: str = "unknown"
    prepare: PrepareSettings = field(default_factory=PrepareSettings)
    vae: VAESettings = field(default_factory=VAESettings)
    denoiser: DenoiserSettings = field(default_factory=DenoiserSettings)
    alignment: AlignmentSettings = field(default_factory=AlignmentSettings)
    diffusion: DiffusionSettings = field(default_factory=DiffusionSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise UserError(f"preset: got {self.preset!r}, wants one of {', '.join(PRESETS)}")
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max_steps: got {self.max_steps}, wants at least 1")
        self.output = self.output or f"runs/{self.preset}"
        try:
            self.prepare.check()
        except UserError as error:
            raise UserError(f"prepare.{error}") from None

    def limit(self, stage: str) -> int:
        """Steps that stage "vae" or "denoiser" trains for: its own, or `max_steps` where that is fewer."""
        steps = getattr(self, stage).steps
        return steps if self.max_steps is None else min(steps, self.max_steps)

    def as_dict(self) -> dict:
        """All values as nested JSON types."""
        return _plain(asdict(self))


def read_command_line(arguments: list[str]) -> tuple[TrainSettings, bool]:
    """Settings and whether `--dry-run` was given. A bad option is a UserError; `--help` prints and exits."""
    from jsonargparse import ArgumentError

    parser = _parser(_chosen_preset(arguments))
    try:
        given = parser.parse_args(arguments)
        return _settings(given), given.dry_run
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{' '.join(str(error).split())} (python -m medsora.train --help explains each)") from None


def differences(recorded: dict, given: dict) -> list[tuple[str, object, object]]:
    """(name, recorded value, given value) of each setting by which a run may not go on; see `FREE`.

    Settings that the record does not have, being newer than it, are passed over.
    """
    before, now = _flat(recorded), _flat(given)
    return [
        (name, before[name], value)
        for name, value in now.items()
        if name in before and before[name] != value and not _is_free(name)
    ]


def preset_values(name: str) -> dict:
    """What a preset's file says, nested as the settings are."""
    if name not in PRESETS:
        raise UserError(f"preset: got {name!r}, wants one of {', '.join(PRESETS)}")
    text = (resources.files("medsora") / "configs" / f"{name}.yaml").read_text("utf-8")
    return yaml.safe_load(text) | {"preset": name}


def _parser(preset: str):
    from jsonargparse import ArgumentParser

    from medsora.help_text import KeepLineBreaks

    parser = ArgumentParser(
        usage=USAGE,
        description=DESCRIPTION,
        exit_on_error=False,
        allow_abbrev=False,
        formatter_class=KeepLineBreaks,
    )
    add = parser.add_argument
    add("--config", action="config", help="A YAML file of settings; may be given several times.")
    add("--preset", help=f"Sizes and training lengths to start from: {', '.join(PRESETS)}.")
    add(
        "--data",
        help='A folder, manifest or file of videos; "builtin:cine", a real ultrasound cine; or "builtin:phantom:N", '
        "N rendered clips.",
    )
    add("--output", help="The run's folder (default: runs/PRESET).")
    add("--seed", type=int, help="Decides every random draw.")
    add("--max-steps", type=int | None, help="Train each stage for at most so many steps; raise it later to go on.")
    add("--device", help='"auto", "cpu" or "cuda".')
    add("--license", help='Licence the recordings came under, for the model card, such as "cc-by-4.0".')
    add("--dry-run", action="store_true", help="Print settings, data, sizes and memory; write nothing.")
    defaults = TrainSettings()
    for part in fields(TrainSettings):
        if hasattr(part.default_factory, "__dataclass_fields__"):
            parser.add_class_arguments(part.default_factory, part.name)
        else:
            parser.set_defaults({part.name: getattr(defaults, part.name)})
    parser.set_defaults({"output": ""})
    parser.set_defaults(_two_levels(preset_values(preset)))
    return parser


def _settings(given) -> TrainSettings:
    values = {}
    for part in fields(TrainSettings):
        value = getattr(given, part.name)
        if hasattr(part.default_factory, "__dataclass_fields__"):
            try:
                value = part.default_factory(**vars(value))
            except ValueError as error:
                raise UserError(f"{part.name}.{error}") from None
        values[part.name] = value
    return TrainSettings(**values)


def _chosen_preset(arguments: list[str]) -> str:
    """The preset must be known before the rest is read: from the options, else from the last file that names one."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset")
    early.add_argument("--config", action="append", default=[])
    try:
        known, _ = early.parse_known_args(arguments)
    except argparse.ArgumentError as error:
        raise UserError(str(error)) from None
    if known.preset is not None:
        return known.preset
    preset = DEFAULT_PRESET
    for path in known.config:
        try:
            content = yaml.safe_load(Path(path).read_text("utf-8"))
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"config: {path} cannot be read as YAML: {error}") from None
        if isinstance(content, dict) and "preset" in content:
            preset = content["preset"]
    return preset


def _two_levels(values: dict) -> dict:
    """{"vae": {"steps": 3}} as {"vae.steps": 3}; dictionaries below stay whole."""
    flat = {}
    for name, value in values.items():
        flat.update({f"{name}.{n}": v for n, v in value.items()} if isinstance(value, dict) else {name: value})
    return flat


def _flat(values: dict, prefix: str = "") -> dict:
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value
    return flat


def _is_free(name: str) -> bool:
    return name in FREE or name.rpartition(".")[2] in FREE_ENDINGS


def _plain(value):
    """Tuples as lists, which is what a JSON file gives back."""
    if isinstance(value, dict):
        return {str(name): _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
