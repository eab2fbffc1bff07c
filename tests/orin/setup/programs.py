"""Small programs in place of real ones, so that the scripts of steps are run by a real shell."""

import os

PASSWORD = "correct horse & 'staple' $7"

# `sudo-is-fresh`: it remembers a password; `sudo-is-free`: it wants none; {listed}: programs for which it wants none
SUDO = """
fresh=; [ ! -e "{folder}/sudo-is-fresh" ] || fresh=1
[ "$1" != -k ] || { fresh=; shift; }
case $1 in
  -n) shift
    case $1 in /*) if grep -qs "$1" "{listed}"; then exit 0; fi ;; esac
    [ -e "{folder}/sudo-is-free" ] || [ -n "$fresh" ] || { echo "sudo: a password is required"; exit 1; } ;;
  -S) [ -n "$fresh" ] || IFS= read -r given
    [ -n "$fresh" ] || [ "$given" = "$(cat '{folder}/password')" ] || {
      echo "sudo: 1 incorrect password attempt"; exit 1
    }
    shift 3 ;;  # -S -p ''
esac
AS_ROOT=1 exec "$@"
"""
ID = """
case "$*" in
  -u) echo "${AS_ROOT:+0}${AS_ROOT:-1000}" | sed 's/^01$/0/' ;;
  -un) echo nv ;;
  -Gn\\ nv|-nG\\ nv) tr '\\n' ' ' <"%s/groups" ;;
esac
"""


def filled(text, values):
    """Put values into a script's `{name}`s; its other braces are the shell's."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", str(value))
    return text


def program(folder, name, text):
    """Put an executable `sh` script into a folder of programs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def people(folder, monkeypatch):
    """A user who is not root, and a sudo that wants a password; returns the folder of programs, in front on PATH."""
    programs = folder / "programs"
    program(programs, "sudo", filled(SUDO, {"folder": folder, "listed": folder / "root/etc/sudoers.d/orin-toolkit"}))
    program(programs, "id", ID % folder)
    (folder / "password").write_text(PASSWORD)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return programs


def files_below(folder):
    """What a folder holds, by path: texts of files, targets of links, None for folders."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found[name] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found
