"""`python -m tools.trust CAMPAIGN [OPTIONS]`; without a campaign, lists them."""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from moe_export.system.machine import machine, versions

CAMPAIGNS = ("fuzz", "kills", "families", "disks", "tampering", "workers", "costs", "sanitizers")


def main(words: list[str] | None = None) -> int:
    """Runs a campaign; returns 1 if it found something bad."""
    parser = argparse.ArgumentParser(prog="python -m tools.trust", description=__doc__)
    commands = parser.add_subparsers(dest="campaign", required=True, metavar="CAMPAIGN")
    for name in CAMPAIGNS:
        module = import_module(f"tools.trust.{name}")
        summary = (module.__doc__ or "").split("\n\n")[0]
        own = commands.add_parser(name, help=summary, description=module.__doc__)
        own.add_argument("--out", type=Path, metavar="FILE", help="JSON file for the figures")
        module.add_options(own)
    arguments = parser.parse_args(words)
    figures = import_module(f"tools.trust.{arguments.campaign}").campaign(arguments)
    figures |= {"machine": machine(), "versions": versions()}
    text = json.dumps({arguments.campaign: figures}, indent=1)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return 1 if figures["bad"] else 0


if __name__ == "__main__":
    sys.exit(main())
