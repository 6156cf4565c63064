"""Where training runs: device, number of devices, precision."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

from unseen.errors import InputError, UnseenWarning


@dataclass(frozen=True)
class Hardware:
    """Where and how precisely to compute; see Lightning Fabric for the values."""

    accelerator: str = "auto"
    devices: int = 1
    precision: str = "32-true"

    def fabric(self) -> Any:
        """A new `lightning_fabric.Fabric`; raises `InputError` when this machine has no such hardware."""
        from lightning_fabric import Fabric

        logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it prints a line at every training
        try:
            with warnings.catch_warnings(record=True) as told:
                fabric = Fabric(
                    accelerator=self.accelerator,
                    devices=self.devices,
                    precision=self.precision,  # type: ignore[arg-type]
                    strategy="ddp_spawn" if self.devices > 1 else "auto",
                )
        except (ValueError, TypeError, RuntimeError, ImportError) as error:
            raise InputError(
                f"accelerator {self.accelerator!r}, devices {self.devices}, precision {self.precision!r}",
                f"cannot be used here ({str(error).strip().rstrip('.')})",
                "accelerator=auto, devices=1 and precision=32-true work everywhere.",
            ) from None
        for one in told:  # such as that it takes bfloat16 where float16 is not to be had
            warnings.warn(str(one.message), UnseenWarning, stacklevel=2)
        return fabric
