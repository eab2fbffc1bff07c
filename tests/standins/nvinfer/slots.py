"""Read `slots.txt` and write the C++ classes whose virtual tables have those slots, each routed by its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SLOTS = Path(__file__).with_name("slots.txt")
DESTRUCTOR = "~"
UNLISTED_SLOTS = 64  # of a concrete layer's own table, which is not listed: none is answered
_SLOT = re.compile(r"  (\w+)\((.*)\) -> (.+)")
_PLAIN = {"void", "bool", "char", "float", "int32_t", "int64_t", "uint32_t", "size_t", "Dims", "Weights"}


@dataclass(frozen=True)
class Parameter:
    """One parameter: its C++ type and name."""

    type: str
    name: str


@dataclass(frozen=True)
class Slot:
    """One slot: `name` is the method's, `DESTRUCTOR` for the pair of destructors."""

    name: str
    parameters: tuple[Parameter, ...]
    result: str


@dataclass(frozen=True)
class Table:
    """The virtual table of one interface: `cpp` is its C++ class, `name` what messages call it."""

    cpp: str
    slots: tuple[Slot, ...]

    @property
    def name(self) -> str:
        """The class without its V or I: "Builder"."""
        return self.cpp[1:]

    @property
    def is_split(self) -> bool:
        """Whether the public object is a shell that points to this table's object."""
        return self.cpp.startswith("V")


def read_tables() -> tuple[Table, ...]:
    """Return every table of `slots.txt`."""
    slots_by_class: dict[str, list[Slot]] = {}
    for line in SLOTS.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", " ")):
            slots_by_class[line] = []
        elif line.startswith(" "):
            next(reversed(slots_by_class.values())).append(_slot(line))
    return tuple(Table(cpp, tuple(slots)) for cpp, slots in slots_by_class.items())


def _slot(line: str) -> Slot:
    if line.strip() == DESTRUCTOR:
        return Slot(DESTRUCTOR, (), "void")
    found = _SLOT.fullmatch(line)
    if found is None:
        raise ValueError(f"slots.txt: {line!r} is not `method(parameters) -> result`")
    name, parameters, result = found.groups()
    parts = [part.rsplit(" ", 1) for part in parameters.split(", ") if part]
    return Slot(name, tuple(Parameter(type_, name) for type_, name in parts), result)


def classes_source(tables: tuple[Table, ...]) -> str:
    """Return C++: type aliases, then one class a table."""
    unlisted = "\n".join(
        f'  virtual void* slot{index}() {{ return route<void*>(owner, "Layer.slot{index} of its own type"); }}'
        for index in range(2, UNLISTED_SLOTS)
    )
    return "\n".join([*_aliases(tables), f"struct Unlisted : Table {{\n{unlisted}\n}};", *map(_class, tables), ""])


def makers_source(tables: tuple[Table, ...]) -> str:
    """Return C++: `make_object`, which makes a public object by its interface's name."""
    made = "\n".join(f'  if (name == "{table.name}") return {_maker(table)};' for table in tables)
    return f"void* make_object(std::string const& name) {{\n{made}\n  return nullptr;\n}}\n"


def _aliases(tables: tuple[Table, ...]) -> list[str]:
    """Enums are 32-bit integers, sets of flags unsigned ones, handles of CUDA pointers; classes are only declared."""
    texts = {text for table in tables for slot in table.slots for text in (slot.result, *_types(slot))}
    names = {name for text in texts for name in re.findall(r"\w+", text)} - _PLAIN - {"const"}
    kinds = {True: "void*", False: "int32_t"}
    return [
        f"class {name};"
        if re.match("I[A-Z]", name)
        else f"using {name} = {'uint32_t' if name.endswith('Flags') or name in _SETS else kinds[name in _HANDLES]};"
        for name in sorted(names)
    ]


_SETS = {"TacticSources", "TensorFormats"}
_HANDLES = {"cudaStream_t", "cudaEvent_t"}


def _types(slot: Slot) -> list[str]:
    return [parameter.type for parameter in slot.parameters]


def _class(table: Table) -> str:
    base = "Table" if table.is_split else "Whole"
    constructor = "" if table.is_split else f'  {table.cpp}() {{ born("{table.name}"); }}'
    return "\n".join(
        [f"struct {table.cpp} : {base} {{", constructor, *(_method(table, slot) for slot in table.slots), "};"]
    )


def _method(table: Table, slot: Slot) -> str:
    owner = "owner" if table.is_split else "this"
    if slot.name == DESTRUCTOR:
        return f'  virtual ~{table.cpp}() {{ died("{table.name}", this); }}\n  static void operator delete(void*) {{}}'
    parameters = ", ".join(f"{parameter.type} {parameter.name}" for parameter in slot.parameters)
    words = "".join(f", word({_passed(parameter)})" for parameter in slot.parameters)
    call = f'route<{slot.result}>({owner}, "{table.name}.{slot.name}"{words})'
    return f"  virtual {slot.result} {slot.name}({parameters}) {{ return {call}; }}"


def _passed(parameter: Parameter) -> str:
    by_address = parameter.type.endswith("&") or parameter.type == "Weights"
    return f"&{parameter.name}" if by_address else parameter.name


def _maker(table: Table) -> str:
    return f'new Shell<{table.cpp}>("{table.name}")' if table.is_split else f"new {table.cpp}"
