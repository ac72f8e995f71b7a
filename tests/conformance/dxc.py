"""Compiles HLSL to DXIL with DXC, by the options that wgpu gives it on DX12.

dxc.py LIBRARY < [{"name", "text", "f16"}, ...]. Says what DXC refuses and exits with 1, or with 77 where the
library cannot be loaded.
"""

import ctypes
import json
import sys
import uuid

COMPILER = "73e22d93-e6ce-47f3-b5bf-f0664f39c1b0"
ICOMPILER3 = "228b4687-5a6a-4730-900c-9702b2203f54"
IRESULT = "58346cda-dde7-4497-9461-6f87af5e0659"

# Methods by their place in the table of virtual functions. This DXC has two destructors behind the three
# methods of IUnknown.
RELEASE = 2
COMPILE, GET_STATUS, GET_ERRORS = 5, 5, 7
GET_POINTER, GET_SIZE = 5, 6

UTF8 = 65001

# Said of every module outside Windows, which has the library that signs.
UNSIGNED = "warning: DXIL.dll not found.  Resulting DXIL will not be signed for use in release environments.\r\n"


class Source(ctypes.Structure):
    _fields_ = [("text", ctypes.c_char_p), ("size", ctypes.c_size_t), ("encoding", ctypes.c_uint32)]


def guid(text):
    return ctypes.create_string_buffer(uuid.UUID(text).bytes_le, 16)


def call(thing, method, result, *arguments):
    table = ctypes.cast(thing, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
    types = [type(argument) for argument in arguments]
    return ctypes.CFUNCTYPE(result, ctypes.c_void_p, *types)(table[method])(thing, *arguments)


def place(thing):
    return ctypes.cast(ctypes.pointer(thing), ctypes.c_void_p)


def messages(compiler, text, f16):
    """Returns what DXC has to say of a module: nothing when all is well."""
    options = ["-E", "main", "-T", "cs_6_2", "-HV", "2018", "-no-warnings", "-Ges"]
    options += ["-enable-16bit-types"] if f16 else []
    array = (ctypes.c_wchar_p * len(options))(*options)
    source = Source(text, len(text), UTF8)
    result, errors, status = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_int32()
    asked = [place(source), place(array), ctypes.c_uint32(len(options)), ctypes.c_void_p()]
    code = call(compiler, COMPILE, ctypes.c_int32, *asked, place(guid(IRESULT)), place(result))
    if code != 0:
        return f"DXC failed with {code:#x}"
    call(result, GET_STATUS, ctypes.c_int32, place(status))
    call(result, GET_ERRORS, ctypes.c_int32, place(errors))
    pointer = call(errors, GET_POINTER, ctypes.c_void_p)
    said = ctypes.string_at(pointer, call(errors, GET_SIZE, ctypes.c_size_t)).rstrip(b"\0").decode()
    call(errors, RELEASE, ctypes.c_uint32)
    call(result, RELEASE, ctypes.c_uint32)
    said = said.replace(UNSIGNED, "").strip()
    return said or (f"DXC failed with {status.value:#x}" if status.value else "")


def main(library):
    try:
        dxc = ctypes.CDLL(library)
    except OSError as error:
        print(f"DXC cannot be loaded: {error}")
        return 77
    compiler = ctypes.c_void_p()
    dxc.DxcCreateInstance(guid(COMPILER), guid(ICOMPILER3), place(compiler))
    refusals = 0
    for module in json.load(sys.stdin):
        said = messages(compiler, module["text"].encode(), module["f16"])
        if said:
            refusals += 1
            print(f"{module['name']}: {said}")
    print(f"{refusals} refused by DXC")
    return 1 if refusals else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
