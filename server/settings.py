"""Settings of `porestream serve`. Flags override the environment (PORESTREAM_*), which overrides a TOML file."""

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from porestream.kernels.align.aligner import PRESETS
from porestream.server.address import wrong_address

_PREFIX = "PORESTREAM_"
_MODELS = "PORESTREAM_MODELS"
_CONFIG = "PORESTREAM_CONFIG"
_SIZE = re.compile(r"^\s*(?P<number>\d+(\.\d+)?)\s*(?P<unit>[KMGT]?)(i?B)?\s*$", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class SettingsError(ValueError):
    """Raised for an unknown or unusable setting; the message names it."""


class Settings(BaseSettings):
    """The settings a server starts with. Their help texts are in cli/commands/serve.py."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True)

    model: Annotated[list[str], NoDecode] = ["auto"]
    models_dir: Path | None = None  # in the environment PORESTREAM_MODELS; a file may also say models, models_directory
    reference: Annotated[list[Path], NoDecode] = []
    preset: Annotated[list[str], NoDecode] = []
    listen: str = "127.0.0.1:50051"
    health_listen: str = ""
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    token_file_lost: Literal["keep", "refuse"] = "keep"
    metrics_port: int = Field(default=0, ge=0, le=65535)
    metrics_host: str = "127.0.0.1"
    metrics_allowed_hosts: Annotated[list[str], NoDecode] = []
    memory_budget: int = 1 << 30
    max_streams: int = Field(default=64, ge=1)
    max_streams_per_peer: int = Field(default=0, ge=0)
    live_share: float = Field(default=0.3, ge=0, le=1)
    live_rate: float = Field(default=16e6, ge=0)
    max_read_samples: int = Field(default=50_000_000, ge=1)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|emulated|cuda(:\d+)?)$")
    decoder: Literal["auto", "gpu", "cpu"] = "auto"
    aligner: Literal["auto", "gpu", "mappy"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    batch_size: int | None = Field(default=None, ge=1, le=4096)
    threads: int = Field(default=0, ge=0)
    batch_delay_s: float = Field(default=0.02, gt=0, le=10)
    grace_s: float = Field(default=30.0, ge=0)
    cache_dir: Path | None = None
    log_format: Literal["auto", "json", "text"] = "auto"
    log_read_ids: bool = False

    @model_validator(mode="before")
    @classmethod
    def _models_folder(cls, values: Any) -> Any:
        for name in ("models", "models_directory"):
            if isinstance(values, dict) and name in values:
                values = dict(values)
                values.setdefault("models_dir", values.pop(name))  # a flag or the environment, if set, wins
        return values

    @field_validator("model", "reference", "preset", "metrics_allowed_hosts", mode="before")
    @classmethod
    def _list(cls, value: Any) -> Any:
        parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
        return [str(part) if isinstance(part, Path) else part for part in parts] if isinstance(parts, list) else parts

    @field_validator("memory_budget", mode="before")
    @classmethod
    def _size(cls, value: Any) -> Any:
        if isinstance(value, str) and (match := _SIZE.match(value)):
            return int(float(match["number"]) * _UNITS[match["unit"].upper()])
        return value

    @field_validator("listen", "health_listen")
    @classmethod
    def _address(cls, value: str) -> str:
        if value and (problem := wrong_address(value, listens=True)):
            raise ValueError(problem)
        return value

    @field_validator("models_dir", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        if value in (None, ""):
            return None
        if isinstance(value, str | Path) and not Path(value).is_dir():
            raise ValueError("no such folder; set it with --models-dir or PORESTREAM_MODELS")
        return value

    @field_validator("model", mode="after")
    @classmethod
    def _some_model(cls, value: list[str]) -> list[str]:
        if not value:
            raise ValueError("no model given; name at least one, or use auto for the model that ships with porestream")
        return value

    @field_validator("preset")
    @classmethod
    def _known_presets(cls, value: list[str]) -> list[str]:
        if unknown := [preset for preset in value if preset not in PRESETS]:
            raise ValueError(f"unknown preset {unknown[0]!r}; choose from {', '.join(PRESETS)}")
        return value

    @model_validator(mode="after")
    def _secrets(self) -> "Settings":
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("one of tls_certificate and tls_key is missing; set both (--tls-certificate, --tls-key)")
        if self.token_file is not None and self.tls_certificate is None:
            raise ValueError(
                "token_file needs TLS, or tokens would travel unencrypted; set tls_certificate and tls_key as well"
            )
        return self

    @property
    def worker_count(self) -> int:
        """Number of workers to start."""
        return self.threads or len(os.sched_getaffinity(0))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put flags first, then the environment, then the file."""
        folder = {"models_dir": os.environ[_MODELS]} if _MODELS in os.environ else {}
        sources = [init_settings, InitSettingsSource(settings_cls, folder), env_settings]
        if config := os.environ.get(_CONFIG):
            sources.append(TomlConfigSettingsSource(settings_cls, Path(config)))
        return tuple(sources)


def environment_names() -> dict[str, str]:
    """Return each setting's environment variable."""
    return {name: _PREFIX + name.upper() for name in Settings.model_fields} | {"models_dir": _MODELS}


def load_settings(flags: dict[str, Any], config: Path | None) -> Settings:
    """Read the settings from the given flags, the environment and a TOML file.

    Raises
    ------
    SettingsError
        A setting is unknown or its value invalid; the message names it.
    """
    if config is not None:
        if not config.is_file():
            raise SettingsError(f"{config}: no such file")
        os.environ[_CONFIG] = str(config)
    known = {*environment_names().values(), _CONFIG}
    if unknown := sorted(name for name in os.environ if name.startswith(_PREFIX) and name not in known):
        close = difflib.get_close_matches(unknown[0], sorted(known), n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise SettingsError(f"unknown setting in the environment: {', '.join(unknown)}{meant}")
    try:
        return Settings(**flags)
    except ValueError as error:
        raise SettingsError(_readable(error)) from error


def _readable(error: ValueError) -> str:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return str(error)
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if not name:  # about several settings at once; the message names them
            lines.append(problem["msg"].removeprefix("Value error, "))
            continue
        if problem["type"] == "extra_forbidden":
            lines.append(f"unknown setting {name!r}")
        elif problem["type"] == "missing":
            lines.append(f"setting {name!r} is missing (--{name.replace('_', '-')})")
        else:
            lines.append(f"setting {name!r}: {problem['msg']} (got {problem['input']!r})")
    return "; ".join(lines)
