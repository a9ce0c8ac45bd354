"""Stands in for a tool, under its name: does what the control file beside it says, else what the real one does.

It needs nothing but Python's standard library, and starts in some 20 ms. `tests.lies` has the words.
"""

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NAME = Path(sys.argv[0]).name
LATE_SECONDS = 2.0
UNREAD = ("nothing", "hang")
"""What needs no payload; so listings meet it, too."""
_RULE = re.compile(r"^-[AI] ")
_IMPOSSIBLE_ELSEWHERE = re.compile(r"^-[DX]|-j (DNAT|MASQUERADE|REJECT)| -[sd] |nfacct")
Say = tuple[int, str]


def main() -> None:
    control: dict[str, Any] = json.loads((FOLDER / "control.json").read_text())
    real, lies = control["real"][NAME], control["lies"]
    kind = "save" if NAME.endswith("-save") else "restore"
    lie, payload = lies[kind], None
    if control["only"] not in ("", NAME.split("-")[0]):
        go_on(real)
    if kind == "restore" and lie not in UNREAD and (lie or lies["listing"]):
        payload = sys.stdin.buffer.read().decode()
        if is_listing(payload):
            kind, lie = "listing", lies["listing"]
    if not lie or not my_turn(control):
        go_on(real, payload)
    (RESTORES if kind == "restore" else READINGS)[lie](real, payload or "")


def is_listing(payload: str) -> bool:
    """Whether a payload only lists chains."""
    return all(line[:1] in {"*", "#", ""} or line == "COMMIT" or line.startswith("-S") for line in payload.splitlines())


def my_turn(control: dict[str, Any]) -> bool:
    """Note this call; whether it is one to lie at."""
    with (FOLDER / f"calls-{control['epoch']}").open("a+") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        calls.seek(0)
        number = len(calls.read().splitlines())
        calls.write(f"{NAME}\n")
    count = control["count"]
    return number >= control["skip"] and (count is None or number < control["skip"] + count)


def go_on(real: str, payload: str | None = None) -> None:
    """Become the real tool."""
    if payload is not None:
        with tempfile.TemporaryFile() as file:
            file.write(payload.encode())
            file.seek(0)
            os.dup2(file.fileno(), 0)
    os.execv(real, [real, *sys.argv[1:]])


def run(real: str, payload: str, *prefix: str) -> Say:
    """The real tool as a child: its status, and what it said."""
    done = subprocess.run([*prefix, real, *sys.argv[1:]], input=payload, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def of_the_other_family(real: str) -> str:
    folder, name = os.path.split(real)
    other = name.replace("ip6tables", "iptables") if "ip6tables" in name else name.replace("iptables", "ip6tables")
    return os.path.join(folder, other)


def end(status: int = 0, said: str = "") -> None:
    sys.stderr.write(said)
    sys.stderr.flush()
    os._exit(status)


# Payloads that are not what they were.


def sections(payload: str) -> list[list[str]]:
    found: list[list[str]] = []
    for line in payload.splitlines():
        if line.startswith("*"):
            found.append([])
        if found:
            found[-1].append(line)
    return found


def text(parts: list[list[str]]) -> str:
    return "".join(f"{line}\n" for part in parts for line in part)


def half_sections(payload: str) -> str:
    found = sections(payload)
    return text(found[: len(found) // 2])


def half_lines(payload: str) -> str:
    """Without the second half of the last section's commands."""
    found = sections(payload)
    if not found:
        return payload
    head, *body = found[-1][:-1]
    return text([*found[:-1], [head, *body[: len(body) // 2], "COMMIT"]])


def without_a_rule(payload: str) -> str:
    lines = payload.splitlines()
    rules = [at for at, line in enumerate(lines) if _RULE.match(line)]
    others = [at for at, line in enumerate(lines) if line[:1] in "-:"]
    for at in (rules or others)[-1:]:
        del lines[at]
    return text([lines])


def elsewhere(payload: str, tables: dict[str, str]) -> str:
    """The same for other tables, as far as these take it."""
    found = []
    for table, *body in sections(payload):
        kept = [re.sub(r"^-I (\S+) \d+", r"-A \1", line) for line in body if not _IMPOSSIBLE_ELSEWHERE.search(line)]
        known = {line[1:].split()[0] for line in kept if line.startswith(":")}
        named = {name for line in kept for name in re.findall(r"(?:-[jg]|^-[AI]) (KUBE-\S+)", line)}
        declared = [f":{name} - [0:0]" for name in sorted(named - known)]
        # Built-in chains of the one table need not be there in the other.
        kept = [line for line in kept if re.match(r":KUBE-|-[AI] KUBE-|COMMIT", line)]
        found.append([f"*{tables.get(table[1:], table[1:])}", *declared, *kept])
    return text(found)


# What may happen to a restore.


def nothing(real: str, payload: str) -> None:
    end()


def late(real: str, payload: str) -> None:
    """Leave it to a process in the background."""
    if os.fork():
        os._exit(0)
    os.setsid()
    (FOLDER / f"late-{os.getpid()}").touch()
    # Who started this waits until nobody has its pipes any more.
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(silence, descriptor)
    time.sleep(LATE_SECONDS)
    run(real, payload)
    (FOLDER / f"late-{os.getpid()}").unlink()
    os._exit(0)


def to_another_table(real: str, payload: str) -> None:
    go_on(real, elsewhere(payload, {"nat": "mangle", "filter": "raw"}))


def to_another_family(real: str, payload: str) -> None:
    go_on(of_the_other_family(real), elsewhere(payload, {}))


def to_another_namespace(real: str, payload: str) -> None:
    run(real, payload, "unshare", "--net")
    end()


def changed(change: Callable[[str], str]) -> Callable[[str, str], None]:
    def act(real: str, payload: str) -> None:
        if left := change(payload):
            run(real, left)
        end()

    return act


def lock_held(real: str, payload: str) -> None:
    end(4, "Another app is currently holding the xtables lock. Stopped waiting after 5s.\n")


def killed(real: str, payload: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_halfway(real: str, payload: str) -> None:
    if left := half_sections(payload):
        run(real, left)
    killed(real, payload)


def no_memory(real: str, payload: str) -> None:
    end(4, f"{NAME}: Memory allocation problem.\n")


def no_memory_for_a_rule(real: str, payload: str) -> None:
    """As the nft tool puts it: it names the line, a Service's."""
    lines = payload.splitlines()
    at = next((at for at, line in enumerate(lines, 1) if line.startswith("-A KUBE-S")), 1)
    chain = lines[at - 1].split()[1:2]
    end(
        4,
        f"{NAME} v1.8.9 (nf_tables): \nline {at}: RULE_APPEND failed (Cannot allocate memory): rule in chain {chain}\n",
    )


def denied(real: str, payload: str) -> None:
    end(4, f"{NAME} v1.8.9 (nf_tables): Could not fetch rule set generation id: Permission denied (you must be root)\n")


def hang(real: str, payload: str) -> None:
    while True:
        time.sleep(3600)


def garbage(real: str, payload: str) -> None:
    for descriptor in (1, 2):
        os.write(descriptor, b"\x00\xff\xfe*nat\n:\x1b[31m \xc3( COMMIT\n" * 1000)
    end()


def error_text(real: str, payload: str) -> None:
    end(0, f"{NAME}: line 3 failed\n")


def as_a_child(real: str, payload: str) -> None:
    """No lie: some distributions wrap the tools."""
    end(*run(real, payload))


RESTORES: dict[str, Callable[[str, str], None]] = {
    "nothing": nothing,
    "nothing, but reads": nothing,
    "half of the sections": changed(half_sections),
    "half of the lines": changed(half_lines),
    "one rule less": changed(without_a_rule),
    "late": late,
    "another table": to_another_table,
    "another family": to_another_family,
    "another namespace": to_another_namespace,
    "garbage": garbage,
    "error text, status 0": error_text,
    "lock held": lock_held,
    "killed": killed,
    "killed halfway": killed_halfway,
    "no memory": no_memory,
    "no memory for a rule": no_memory_for_a_rule,
    "denied": denied,
    "hang": hang,
    "hang, but reads": hang,
    "as a child": as_a_child,
}


# What may happen to a save, or to a restore that only lists chains.


def empty(real: str, payload: str) -> None:
    end()


def quarters(count: int) -> Callable[[str, str], None]:
    def act(real: str, payload: str) -> None:
        done = subprocess.run([real, *sys.argv[1:]], input=payload, capture_output=True, text=True, check=False)
        lines = done.stdout.splitlines(keepends=True)
        sys.stdout.writelines(lines[: len(lines) * count // 4])
        sys.stdout.flush()
        end()

    return act


def of_another_family(real: str, payload: str) -> None:
    go_on(of_the_other_family(real), payload)


READINGS: dict[str, Callable[[str, str], None]] = {
    "empty": empty,
    "half": quarters(2),
    "three quarters": quarters(3),
    "another family": of_another_family,
    "hang": hang,
}

if __name__ == "__main__":
    main()
