//! Rules → classic BPF.

use std::collections::BTreeMap;

use oci_spec::runtime::{LinuxSeccompArg, LinuxSeccompOperator};

use super::{RET_ALLOW, RET_ERRNO, RET_LOG, RET_USER_NOTIF};
use crate::error::{Error, Kind, Result};
use crate::sys::Instruction;

/// What the kernel is told to do with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action(pub(super) u32);

impl Action {
    /// Whether the call goes ahead.
    pub(super) fn permits(self) -> bool {
        self.0 == RET_ALLOW || self.0 == RET_LOG
    }

    /// Whether an agent decides.
    pub(super) fn notifies(self) -> bool {
        self.0 == RET_USER_NOTIF
    }

    fn is_errno(self) -> bool {
        self.0 & 0xffff_0000 == RET_ERRNO
    }
}

/// A condition on one argument.
#[derive(Clone, Debug)]
struct Condition {
    index: u32,
    op: LinuxSeccompOperator,
    value: u64,
    other: u64,
}

/// What applies to one system call.
#[derive(Clone, Debug, Default)]
struct Rule {
    /// Whatever the arguments.
    always: Option<Action>,
    /// The first whose conditions all hold.
    when: Vec<(Vec<Condition>, Action)>,
}

/// By which numbers a process calls the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Abi {
    /// This binary's own.
    Native,
    /// On x86-64: its registers and 32-bit pointers.
    X32,
    /// On x86-64: 32-bit programs.
    X86,
    /// On aarch64: 32-bit programs.
    Arm,
}

/// A profile being collected, for one ABI.
#[derive(Debug)]
pub(super) struct Rules {
    default: Action,
    calls: BTreeMap<u32, Rule>,
}

// Source: include/uapi/linux/bpf_common.h.
const LD_W_ABS: u16 = 0x20;
const AND: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RET: u16 = 0x06;

/// Source: include/uapi/linux/filter.h, `BPF_MAXINSNS`.
const PROGRAM_LEN_MAX: usize = 4096;

// Source: include/uapi/linux/audit.h and seccomp.h (`struct seccomp_data`).
#[cfg(target_arch = "x86_64")]
const NATIVE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const NATIVE: u32 = 0xc000_00b7;
const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCHITECTURE: u32 = 4;
const OFFSET_ARGUMENTS: u32 = 16;
/// x32 calls carry this bit. Source: arch/x86/include/uapi/asm/unistd.h.
#[cfg(target_arch = "x86_64")]
const X32_BIT: u32 = 0x4000_0000;

impl Abi {
    /// What the kernel says of a call by a 32-bit program. Source: include/uapi/linux/audit.h.
    fn architecture(self) -> u32 {
        match self {
            Abi::Native | Abi::X32 => NATIVE,
            Abi::X86 => 0x4000_0003,
            Abi::Arm => 0x4000_0028,
        }
    }
}

const NO_SUCH_CALL: Action = Action(RET_ERRNO | nix::libc::ENOSYS as u32);

impl Rules {
    pub(super) fn new(default: Action) -> Self {
        Self { default, calls: BTreeMap::new() }
    }

    /// Adds one entry of a profile for one call. An unconditional entry wins over conditional
    /// ones, an earlier one over a later. Conditions hold together, but several on the same
    /// argument are alternatives, as libseccomp's users know it.
    pub(super) fn add(&mut self, number: u32, action: Action, args: &[LinuxSeccompArg]) -> Result<()> {
        let default = self.default;
        let rule = self.calls.entry(number).or_default();
        // As libseccomp's users know it, what is the default anyway says nothing, and conditions elsewhere hold.
        if action == default {
            return Ok(());
        }
        if args.is_empty() {
            rule.always = rule.always.or(Some(action));
            return Ok(());
        }
        let conditions = args
            .iter()
            .map(|arg| {
                let index = u32::try_from(arg.index()).ok().filter(|i| *i < 6);
                Ok(Condition {
                    index: index.ok_or_else(|| Error::invalid("args.index", "is above 5"))?,
                    op: arg.op(),
                    value: arg.value(),
                    other: arg.value_two().unwrap_or(0),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let distinct =
            conditions.iter().enumerate().all(|(i, c)| conditions[..i].iter().all(|d| d.index != c.index));
        if distinct {
            rule.when.push((conditions, action));
        } else {
            rule.when.extend(conditions.into_iter().map(|c| (vec![c], action)));
        }
        Ok(())
    }

    /// Adds an action for a call whose argument at `index`, masked, is `value`.
    pub(super) fn add_when(&mut self, number: u32, action: Action, index: u32, mask: u64, value: u64) {
        let condition =
            Condition { index, op: LinuxSeccompOperator::ScmpCmpMaskedEq, value: mask, other: value };
        self.calls.entry(number).or_default().when.push((vec![condition], action));
    }

    /// What is done with a call that the profile says nothing about.
    pub(super) fn default(&self) -> Action {
        self.default
    }

    /// Code that has the call's number in the accumulator, and decides.
    fn decide(&self) -> Vec<Instruction> {
        self.search(&self.ranges())
    }

    /// First number → what applies from there on, until the next. Calls above all that the profile names are newer than
    /// it, and do not exist as far as a profile that denies by errno is concerned: libraries fall back then.
    fn ranges(&self) -> Vec<(u32, Leaf<'_>)> {
        let mut ranges = Vec::new();
        let mut next = 0;
        for (number, rule) in &self.calls {
            if *number > next {
                ranges.push((next, Leaf::Plain(self.default)));
            }
            ranges.push((*number, self.leaf(rule)));
            next = number + 1;
        }
        let beyond = match self.default.is_errno() && next > 0 {
            true => NO_SUCH_CALL,
            false => self.default,
        };
        ranges.push((next, Leaf::Plain(beyond)));
        // Neighbours that say the same are one range.
        ranges.dedup_by(|(_, b), (_, a)| match (a, b) {
            (Leaf::Plain(a), Leaf::Plain(b)) => a == b,
            _ => false,
        });
        ranges
    }

    fn leaf<'a>(&self, rule: &'a Rule) -> Leaf<'a> {
        match rule.always {
            Some(action) => Leaf::Plain(action),
            None if rule.when.is_empty() => Leaf::Plain(self.default),
            None => Leaf::Arguments(rule),
        }
    }

    /// Code that finds the accumulator's range and does what it says.
    fn search(&self, ranges: &[(u32, Leaf<'_>)]) -> Vec<Instruction> {
        if let [(_, leaf)] = ranges {
            return match leaf {
                Leaf::Plain(action) => vec![ret(*action)],
                Leaf::Arguments(rule) => self.arguments(rule),
            };
        }
        let (low, high) = ranges.split_at(ranges.len() / 2);
        let (left, right) = (self.search(low), self.search(high));
        let mut code = match u8::try_from(left.len()) {
            Ok(distance) => vec![jump(JGE, high[0].0, distance, 0)],
            // Conditional jumps reach 255 instructions, unconditional ones any number.
            Err(_) => {
                vec![jump(JGE, high[0].0, 0, 1), Instruction { code: JA, jt: 0, jf: 0, k: left.len() as u32 }]
            }
        };
        code.extend(left);
        code.extend(right);
        code
    }

    fn arguments(&self, rule: &Rule) -> Vec<Instruction> {
        let mut code = Vec::new();
        for (conditions, action) in &rule.when {
            let mut tests: Vec<Test> = Vec::new();
            for condition in conditions {
                condition.emit(&mut tests);
            }
            let len = tests.len();
            for (at, test) in tests.into_iter().enumerate() {
                let distance = |to: To| match to {
                    To::Next => 0,
                    // Past the rest and the return.
                    To::Fail => (len - at) as u8,
                    To::Skip(n) => n,
                };
                code.push(match test {
                    Test::Plain(instruction) => instruction,
                    Test::Jump(op, k, yes, no) => jump(op, k, distance(yes), distance(no)),
                });
            }
            code.push(ret(*action));
        }
        code.push(ret(self.default));
        code
    }
}

/// The program for a process that may call by each of these ABIs. Calls by others do not exist.
pub(super) fn assemble(all: &BTreeMap<Abi, Rules>) -> Result<Vec<Instruction>> {
    let decide = |abi| all.get(&abi).map(Rules::decide);
    let mut native = vec![load(OFFSET_NUMBER)];
    #[cfg(target_arch = "x86_64")]
    match decide(Abi::X32) {
        None => native.extend([jump(JGE, X32_BIT, 0, 1), ret(NO_SUCH_CALL)]),
        Some(code) => {
            // The bit is taken off; what is left is looked up.
            let len = code.len() as u32 + 1;
            native.extend([jump(JGE, X32_BIT, 1, 0), Instruction { code: JA, jt: 0, jf: 0, k: len }]);
            native.push(Instruction { code: AND, jt: 0, jf: 0, k: !X32_BIT });
            native.extend(code);
        }
    }
    native.extend(decide(Abi::Native).unwrap_or_else(|| vec![ret(NO_SUCH_CALL)]));
    let mut program = vec![load(OFFSET_ARCHITECTURE)];
    let foreign = [Abi::X86, Abi::Arm].into_iter().find_map(|abi| Some((abi, decide(abi)?)));
    match foreign {
        None => {
            program.extend([jump(JEQ, NATIVE, 1, 0), ret(NO_SUCH_CALL)]);
            program.extend(native);
        }
        Some((abi, code)) => {
            program.extend([
                jump(JEQ, NATIVE, 3, 0),
                jump(JEQ, abi.architecture(), 0, 1),
                Instruction { code: JA, jt: 0, jf: 0, k: native.len() as u32 + 1 },
                ret(NO_SUCH_CALL),
            ]);
            program.extend(native);
            program.push(load(OFFSET_NUMBER));
            program.extend(code);
        }
    }
    if program.len() > PROGRAM_LEN_MAX {
        let text = format!("the filter has {} instructions, more than {PROGRAM_LEN_MAX}", program.len());
        return Err(Error::new(Kind::Invalid, text));
    }
    Ok(program)
}

#[derive(Debug)]
enum Leaf<'a> {
    Plain(Action),
    Arguments(&'a Rule),
}

/// Where a test of a condition goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The rule does not apply.
    Fail,
    /// So many instructions further: the condition holds.
    Skip(u8),
}

enum Test {
    Plain(Instruction),
    Jump(u16, u32, To, To),
}

impl Condition {
    /// Arguments are 64 bits wide and compared in halves, the upper first.
    fn emit(&self, tests: &mut Vec<Test>) {
        let halves = |v: u64| ((v >> 32) as u32, v as u32);
        let (high, low) = halves(self.value);
        let offset = OFFSET_ARGUMENTS + 8 * self.index;
        // Both architectures are little-endian.
        let load_high = Test::Plain(load(offset + 4));
        let load_low = Test::Plain(load(offset));
        use LinuxSeccompOperator as Op;
        use Test::{Jump, Plain};
        let and = |mask: u32| Plain(Instruction { code: AND, jt: 0, jf: 0, k: mask });
        match self.op {
            Op::ScmpCmpEq => tests.extend([
                load_high,
                Jump(JEQ, high, To::Next, To::Fail),
                load_low,
                Jump(JEQ, low, To::Next, To::Fail),
            ]),
            Op::ScmpCmpNe => tests.extend([
                load_high,
                Jump(JEQ, high, To::Next, To::Skip(2)),
                load_low,
                Jump(JEQ, low, To::Fail, To::Next),
            ]),
            Op::ScmpCmpMaskedEq => {
                let (other_high, other_low) = halves(self.other);
                tests.extend([
                    load_high,
                    and(high),
                    Jump(JEQ, other_high, To::Next, To::Fail),
                    load_low,
                    and(low),
                    Jump(JEQ, other_low, To::Next, To::Fail),
                ]);
            }
            Op::ScmpCmpGt => tests.extend([
                load_high,
                Jump(JGT, high, To::Skip(3), To::Next),
                Jump(JEQ, high, To::Next, To::Fail),
                load_low,
                Jump(JGT, low, To::Next, To::Fail),
            ]),
            Op::ScmpCmpGe => tests.extend([
                load_high,
                Jump(JGT, high, To::Skip(3), To::Next),
                Jump(JEQ, high, To::Next, To::Fail),
                load_low,
                Jump(JGE, low, To::Next, To::Fail),
            ]),
            Op::ScmpCmpLt => tests.extend([
                load_high,
                Jump(JGT, high, To::Fail, To::Next),
                Jump(JEQ, high, To::Next, To::Skip(2)),
                load_low,
                Jump(JGE, low, To::Fail, To::Next),
            ]),
            Op::ScmpCmpLe => tests.extend([
                load_high,
                Jump(JGT, high, To::Fail, To::Next),
                Jump(JEQ, high, To::Next, To::Skip(2)),
                load_low,
                Jump(JGT, low, To::Fail, To::Next),
            ]),
        }
    }
}

fn load(offset: u32) -> Instruction {
    Instruction { code: LD_W_ABS, jt: 0, jf: 0, k: offset }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}

fn ret(action: Action) -> Instruction {
    Instruction { code: RET, jt: 0, jf: 0, k: action.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would.
    pub(super) fn run(program: &[Instruction], arch: u32, number: u32, args: [u64; 6]) -> u32 {
        let mut data = [0u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&arch.to_le_bytes());
        for (i, arg) in args.iter().enumerate() {
            data[16 + 8 * i..24 + 8 * i].copy_from_slice(&arg.to_le_bytes());
        }
        let (mut at, mut a) = (0usize, 0u32);
        loop {
            let i = program[at];
            at += 1;
            let branch = |taken: bool| usize::from(if taken { i.jt } else { i.jf });
            match i.code {
                LD_W_ABS => {
                    let k = i.k as usize;
                    a = u32::from_le_bytes(data[k..k + 4].try_into().unwrap());
                }
                AND => a &= i.k,
                JA => at += i.k as usize,
                JEQ => at += branch(a == i.k),
                JGT => at += branch(a > i.k),
                JGE => at += branch(a >= i.k),
                RET => return i.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    const DENY: Action = Action(RET_ERRNO | 1);
    const ALLOW: Action = Action(RET_ALLOW);

    fn arg(index: usize, op: &str, value: u64, two: u64) -> LinuxSeccompArg {
        serde_json::from_value(serde_json::json!(
            {"index": index, "op": op, "value": value, "valueTwo": two}
        ))
        .unwrap()
    }

    fn program(rules: &Rules) -> Vec<Instruction> {
        let copy = Rules { default: rules.default, calls: rules.calls.clone() };
        assemble(&BTreeMap::from([(Abi::Native, copy)])).unwrap()
    }

    fn decide(rules: &Rules, number: u32, first: u64) -> u32 {
        run(&program(rules), NATIVE, number, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn every_number_finds_its_range() {
        let mut rules = Rules::new(DENY);
        let allowed = |n: u32| !n.is_multiple_of(3) && !n.is_multiple_of(7);
        for n in (0..450).filter(|n| allowed(*n)) {
            rules.add(n, ALLOW, &[]).unwrap();
        }
        let last = (0..450).rev().find(|n| allowed(*n)).unwrap();
        for n in 0..=500 {
            let expected = match n {
                n if n > last => NO_SUCH_CALL,
                n if allowed(n) => ALLOW,
                _ => DENY,
            };
            assert_eq!(decide(&rules, n, 0), expected.0, "{n}");
        }
        assert_eq!(decide(&rules, u32::MAX, 0), NO_SUCH_CALL.0);
        assert_eq!(run(&program(&rules), 0x4000_0003, 1, [0; 6]), NO_SUCH_CALL.0);
        // A profile that names nothing knows nothing newer; one that kills does so for what it does not know.
        assert_eq!(decide(&Rules::new(DENY), 7, 0), DENY.0);
        let mut kills = Rules::new(Action(super::super::RET_KILL_PROCESS));
        kills.add(1, ALLOW, &[]).unwrap();
        assert_eq!(decide(&kills, 400, 0), super::super::RET_KILL_PROCESS);
    }

    #[test]
    fn each_abi_has_its_own_numbers() {
        let with = |number: u32| {
            let mut rules = Rules::new(DENY);
            // Long enough that the jump over it is a far one.
            for n in 0..100 {
                rules.add(n, ALLOW, &[arg(0, "SCMP_CMP_GT", u64::MAX - 1, 0)]).unwrap();
            }
            rules.add(number, ALLOW, &[]).unwrap();
            rules
        };
        let other = if cfg!(target_arch = "x86_64") { Abi::X86 } else { Abi::Arm };
        let mut all = BTreeMap::from([(Abi::Native, with(200)), (other, with(201))]);
        if cfg!(target_arch = "x86_64") {
            all.insert(Abi::X32, with(202));
        }
        let program = assemble(&all).unwrap();
        let allows = |architecture, number| run(&program, architecture, number, [0; 6]) == ALLOW.0;
        for n in 200..203 {
            assert_eq!(allows(NATIVE, n), n == 200, "{n}");
            assert_eq!(allows(other.architecture(), n), n == 201, "{n}");
            #[cfg(target_arch = "x86_64")]
            assert_eq!(allows(NATIVE, n | X32_BIT), n == 202, "{n}");
        }
        assert_eq!(run(&program, 0x1234, 200, [0; 6]), NO_SUCH_CALL.0);
    }

    #[test]
    fn comparisons_over_64_bits() {
        const V: u64 = 0x1_0000_0005;
        let samples = [0, 5, 6, 0xffff_ffff, V - 1, V, V + 1, 0x2_0000_0000, u64::MAX];
        type Case = (&'static str, fn(u64) -> bool);
        let cases: [Case; 6] = [
            ("SCMP_CMP_EQ", |a| a == V),
            ("SCMP_CMP_NE", |a| a != V),
            ("SCMP_CMP_LT", |a| a < V),
            ("SCMP_CMP_LE", |a| a <= V),
            ("SCMP_CMP_GE", |a| a >= V),
            ("SCMP_CMP_GT", |a| a > V),
        ];
        for (op, expected) in cases {
            let mut rules = Rules::new(DENY);
            rules.add(10, ALLOW, &[arg(0, op, V, 0)]).unwrap();
            for a in samples {
                assert_eq!(decide(&rules, 10, a) == ALLOW.0, expected(a), "{op} {a:#x}");
            }
        }
        let mut rules = Rules::new(DENY);
        let masked = arg(0, "SCMP_CMP_MASKED_EQ", 0xff00_0000_00f0, 0x1200_0000_0030);
        rules.add(10, ALLOW, &[masked]).unwrap();
        assert_eq!(decide(&rules, 10, 0x1234_5678_9a3c), ALLOW.0);
        assert_eq!(decide(&rules, 10, 0x1334_5678_9a3c), DENY.0);
    }

    #[test]
    fn conditions_hold_together_but_alternatives_on_one_argument() {
        let mut rules = Rules::new(DENY);
        let eq = |i, v| arg(i, "SCMP_CMP_EQ", v, 0);
        rules.add(1, ALLOW, &[eq(0, 7), eq(1, 9)]).unwrap();
        rules.add(2, ALLOW, &[eq(0, 7), eq(0, 9)]).unwrap();
        rules.add(3, ALLOW, &[eq(0, 7)]).unwrap();
        rules.add(3, ALLOW, &[]).unwrap();
        let program = program(&rules);
        let decide = |n, a, b| run(&program, NATIVE, n, [a, b, 0, 0, 0, 0]) == ALLOW.0;
        assert!(decide(1, 7, 9) && !decide(1, 7, 8) && !decide(1, 6, 9));
        assert!(decide(2, 7, 0) && decide(2, 9, 0) && !decide(2, 8, 0));
        assert!(decide(3, 1, 0));
        assert!(rules.add(4, ALLOW, &[eq(6, 0)]).is_err());
    }

    #[test]
    fn what_is_the_default_says_nothing_but_that_the_call_is_known() {
        let mut rules = Rules::new(DENY);
        rules.add(5, DENY, &[]).unwrap();
        rules.add(5, ALLOW, &[arg(0, "SCMP_CMP_EQ", 7, 0)]).unwrap();
        rules.add(9, DENY, &[]).unwrap();
        assert_eq!(decide(&rules, 5, 7), ALLOW.0);
        assert_eq!(decide(&rules, 5, 8), DENY.0);
        assert_eq!(decide(&rules, 9, 0), DENY.0);
        assert_eq!(decide(&rules, 10, 0), NO_SUCH_CALL.0);
    }

    #[test]
    fn long_programs_jump_far() {
        let mut rules = Rules::new(DENY);
        for n in 0..200 {
            rules.add(n, ALLOW, &[arg(0, "SCMP_CMP_GT", u64::from(n), 0)]).unwrap();
        }
        for n in 0..200 {
            assert_eq!(decide(&rules, n, u64::from(n)), DENY.0);
            assert_eq!(decide(&rules, n, u64::from(n) + 1), ALLOW.0);
        }
    }
}
