"""An ssh server on loopback that runs what it is asked to, and keeps what it was asked."""

import asyncio
import threading

import asyncssh


class Server:
    """Serves one user with one key; `commands` are what it was asked; at one with `cut_at` in it the line goes dead."""

    def __init__(self, folder, environment):
        self._folder, self._environment = folder, environment
        self.commands, self.logins, self.cut_at = [], 0, None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self):
        self._folder.mkdir()
        for name in ("host", "user"):
            key = asyncssh.generate_private_key("ssh-ed25519")
            key.write_private_key(str(self._folder / name))
            key.write_public_key(str(self._folder / f"{name}.pub"))
            (self._folder / name).chmod(0o600)
        self._thread.start()
        self._server = self._call(self._listen())
        self.port = self._server.sockets[0].getsockname()[1]
        host = (self._folder / "host.pub").read_text().split()[:2]
        (self._folder / "known").write_text(f"[127.0.0.1]:{self.port} {' '.join(host)}\n")
        return self

    def __exit__(self, *_):
        self._server.close()
        self._call(self._drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _drain(self):
        await self._server.wait_closed()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _listen(self):
        kept = self

        class Door(asyncssh.SSHServer):
            def connection_made(self, connection):
                kept.logins += 1

        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_factory=Door,
            server_host_keys=[str(self._folder / "host")],
            authorized_client_keys=str(self._folder / "user.pub"),
            process_factory=self._process,
            encoding=None,
        )

    async def _process(self, process):
        self.commands.append(process.command)
        if self.cut_at and self.cut_at in process.command:
            self.cut_at = None
            process.channel.get_connection().abort()
            return
        child = await asyncio.create_subprocess_shell(
            process.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
        )
        feed = await process.stdin.read()
        printed, _ = await child.communicate(feed)
        process.stdout.write(printed)
        process.exit(child.returncode)

    @property
    def options(self):
        """What ssh needs to reach it."""
        values = {
            "Port": self.port,
            "IdentityFile": self._folder / "user",
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": self._folder / "known",
            "GlobalKnownHostsFile": "/dev/null",
        }
        return ["-F", "/dev/null", *(word for name, value in values.items() for word in ("-o", f"{name}={value}"))]
