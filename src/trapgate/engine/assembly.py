"""Small pieces of x86-64 machine code: instructions and labels, which iced-x86 encodes."""

from typing import TypeAlias

from iced_x86 import BlockEncoder, Code, Instruction, MemoryOperand, Register

Line: TypeAlias = Instruction | tuple[int, str] | str
"""An instruction; a branch, its code and the label it leads to; or a label."""

RAX, RCX, RDX = Register.RAX, Register.RCX, Register.RDX
RSP, RSI, RDI = Register.RSP, Register.RSI, Register.RDI
R8, R9 = Register.R8, Register.R9
AL, EAX = Register.AL, Register.EAX

JE, JNE, JS, JGE, JA, JB, JMP = (
    Code.JE_REL32_64,
    Code.JNE_REL32_64,
    Code.JS_REL32_64,
    Code.JGE_REL32_64,
    Code.JA_REL32_64,
    Code.JB_REL32_64,
    Code.JMP_REL32_64,
)
RET = Instruction.create(Code.RETNQ)


def assemble(*lines: Line) -> bytes:
    """Position-independent machine code. A branch leads to the label of its name."""
    labels: dict[str, int] = {}
    code: list[Instruction | tuple[int, str]] = []
    for line in lines:
        if isinstance(line, str):
            labels[line] = len(code)
        else:
            code.append(line)
    encoder = BlockEncoder(64)
    for place, line in enumerate(code):
        if isinstance(line, tuple):
            instruction = Instruction.create_branch(line[0], labels[line[1]])
        else:
            instruction = line.copy()
        # The encoder takes the place as the address that branches mean.
        instruction.ip = place
        encoder.add(instruction)
    data: bytes = encoder.encode(0)
    return data


def _at(base: int, displacement: int) -> MemoryOperand:
    return MemoryOperand(base, displ=displacement, displ_size=8)


def load(register: int, base: int, displacement: int) -> Instruction:
    """MOV of 64 bits from memory."""
    return Instruction.create_reg_mem(Code.MOV_R64_RM64, register, _at(base, displacement))


def load_32(register: int, base: int, displacement: int) -> Instruction:
    """MOV of 32 bits from memory, zero-extended to the 64 of `register`."""
    low = Register.EAX + register - Register.RAX
    return Instruction.create_reg_mem(Code.MOV_R32_RM32, low, _at(base, displacement))


def store(base: int, displacement: int, register: int) -> Instruction:
    """MOV of 64 bits to memory."""
    return Instruction.create_mem_reg(Code.MOV_RM64_R64, _at(base, displacement), register)


def compare(register: int, base: int, displacement: int) -> Instruction:
    """CMP with 64 bits of memory."""
    return Instruction.create_reg_mem(Code.CMP_R64_RM64, register, _at(base, displacement))


def compare_32(base: int, displacement: int, value: int) -> Instruction:
    """CMP of 32 bits of memory with a value of eight, sign-extended."""
    return Instruction.create_mem_i32(Code.CMP_RM32_IMM8, _at(base, displacement), value)


def test_32(base: int, displacement: int, value: int) -> Instruction:
    """TEST of 32 bits of memory."""
    return Instruction.create_mem_u32(Code.TEST_RM32_IMM32, _at(base, displacement), value)


def set_if_zero(register: int) -> Instruction:
    """SETE of a register of eight bits."""
    return Instruction.create_reg(Code.SETE_RM8, register)


def constant(register: int, value: int) -> Instruction:
    """MOV of 64 immediate bits."""
    return Instruction.create_reg_u64(Code.MOV_R64_IMM64, register, value)


def add(register: int, other: int) -> Instruction:
    """ADD of registers."""
    return Instruction.create_reg_reg(Code.ADD_R64_RM64, register, other)


def add_small(register: int, value: int) -> Instruction:
    """ADD of a value of eight bits, sign-extended."""
    return Instruction.create_reg_i32(Code.ADD_RM64_IMM8, register, value)


def compare_small(register: int, value: int) -> Instruction:
    """CMP with a value of eight bits, sign-extended."""
    return Instruction.create_reg_i32(Code.CMP_RM64_IMM8, register, value)


def shift_right_signed(register: int, count: int) -> Instruction:
    """SAR of 64 bits."""
    return Instruction.create_reg_u32(Code.SAR_RM64_IMM8, register, count)


def and_32(register: int, value: int) -> Instruction:
    """AND of a 32-bit register, whose upper half becomes 0, with a signed value."""
    return Instruction.create_reg_i32(Code.AND_RM32_IMM32, register, value)


def test(register: int) -> Instruction:
    """TEST of a register with itself."""
    return Instruction.create_reg_reg(Code.TEST_RM64_R64, register, register)


def test_small_32(register: int, value: int) -> Instruction:
    """TEST of a register's lower half with a signed value of 32 bits."""
    low = Register.EAX + register - Register.RAX
    return Instruction.create_reg_i32(Code.TEST_RM32_IMM32, low, value)


def clear(register: int) -> Instruction:
    """XOR of a register with itself."""
    return Instruction.create_reg_reg(Code.XOR_R64_RM64, register, register)


def jump_to(function: int) -> tuple[Instruction, Instruction]:
    """Go on at an address, by way of RAX."""
    return constant(RAX, function), Instruction.create_reg(Code.JMP_RM64, RAX)


def call_saving(function: int, *registers: int, first: tuple[Instruction, ...] = ()) -> list[Line]:
    """Call a function and keep an odd number of registers, which leaves the stack aligned.

    `first` runs after they are saved: it may load arguments.
    """
    push, pop = Code.PUSH_R64, Code.POP_R64
    return [
        *(Instruction.create_reg(push, register) for register in registers),
        *first,
        constant(RAX, function),
        Instruction.create_reg(Code.CALL_RM64, RAX),
        *(Instruction.create_reg(pop, register) for register in reversed(registers)),
    ]
