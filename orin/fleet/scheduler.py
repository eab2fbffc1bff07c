"""The fleet's scheduler: `python -m orin.fleet.scheduler INVENTORY`; writes its address and serves until shut down."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from orin.errors import OrinError
from orin.fleet.dask import NO_DASHBOARD, load_dask, security, silence
from orin.fleet.inventory import Inventory, load_inventory
from orin.record import write_atomically

ADDRESS = "address"


async def serve(inventory: Inventory) -> None:
    """Serve until somebody shuts the fleet down."""
    distributed = load_dask()
    silence(inventory.silence_s)
    scheduler = distributed.Scheduler(
        host=inventory.host,
        port=inventory.port,
        protocol="tls" if inventory.tls else "tcp",
        security=security(inventory.tls),
        dashboard=inventory.dashboard,
        dashboard_address=":8787" if inventory.dashboard else NO_DASHBOARD,
    )
    async with scheduler:
        write_atomically(inventory.state / ADDRESS, scheduler.address)
        await scheduler.finished()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the process; an error that a user can mend ends it in one line."""
    parser = argparse.ArgumentParser(prog="orin.fleet.scheduler", description=__doc__)
    parser.add_argument("inventory", type=Path)
    options = parser.parse_args(arguments)
    try:
        asyncio.run(serve(load_inventory(options.inventory)))
    except (OrinError, OSError, ValueError) as error:
        print(f"scheduler: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
