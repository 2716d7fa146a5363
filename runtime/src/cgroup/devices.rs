//! Device rules on cgroup v2: a small BPF program, asked on every open and mknod of a device.
//!
//! The spec's rules are a list in which a later rule overrides an earlier one, so the program
//! tests them last to first; the first match decides. An allowing rule matches if it covers the
//! whole of the access asked for, a denying one if it covers any of it. What no rule matches is
//! allowed, as in a new v1 cgroup. The devices that every container has come last in the list.
//!
//! Source: bpf(2); include/uapi/linux/bpf.h, `bpf_cgroup_dev_ctx`.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::{Error, Result};

// Source: include/uapi/linux/bpf.h, `BPF_DEVCG_ACC_*`.
pub(super) const MKNOD: u32 = 1;
pub(super) const READ: u32 = 2;
pub(super) const WRITE: u32 = 4;

/// `rwm` for these (major, minor), and `m` for all: nodes may be made, not used.
const ALWAYS: [(i64, i64); 8] = [
    (1, 3),    // null
    (1, 5),    // zero
    (1, 7),    // full
    (1, 8),    // random
    (1, 9),    // urandom
    (5, 0),    // tty
    (5, 2),    // ptmx
    (136, -1), // pts/*
];

/// One rule of the list; what is `None` is any.
pub(super) struct Rule {
    pub(super) allow: bool,
    /// `BPF_DEVCG_DEV_*`: 1 block, 2 character.
    pub(super) kind: Option<u32>,
    pub(super) major: Option<u32>,
    pub(super) minor: Option<u32>,
    pub(super) access: u32,
}

/// The program for these rules.
///
/// # Errors
/// `Invalid` for an unknown device type, access letter or number.
pub(super) fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<u64>> {
    Ok(assemble(&self::rules(rules)?))
}

/// The spec's rules, and after them those for what every container has.
pub(super) fn rules(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Rule>> {
    let mut list = rules.iter().map(parse).collect::<Result<Vec<_>>>()?;
    list.push(Rule { allow: true, kind: None, major: None, minor: None, access: MKNOD });
    list.extend(ALWAYS.iter().map(|(major, minor)| Rule {
        allow: true,
        kind: Some(2),
        major: u32::try_from(*major).ok(),
        minor: u32::try_from(*minor).ok(),
        access: MKNOD | READ | WRITE,
    }));
    Ok(list)
}

fn parse(rule: &LinuxDeviceCgroup) -> Result<Rule> {
    let field = "linux.resources.devices";
    let number = |n: Option<i64>| match n {
        None => Ok(None),
        // -1 is the wildcard that container engines write.
        Some(-1) => Ok(None),
        Some(n) => u32::try_from(n)
            .map(Some)
            .map_err(|_| Error::invalid(field, format!("device number {n} is out of range"))),
    };
    let mut access = 0;
    for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
        access |= match letter {
            'r' => READ,
            'w' => WRITE,
            'm' => MKNOD,
            other => return Err(Error::invalid(field, format!("unknown access {other:?}"))),
        };
    }
    let kind = match rule.typ() {
        None | Some(LinuxDeviceType::A) => None,
        Some(LinuxDeviceType::B) => Some(1),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(2),
        Some(LinuxDeviceType::P) => {
            return Err(Error::invalid(field, "type p is not a device"));
        }
    };
    Ok(Rule { allow: rule.allow(), kind, major: number(rule.major())?, minor: number(rule.minor())?, access })
}

/// One eBPF instruction, in the machine's byte order.
fn instruction(code: u8, dst: u8, src: u8, off: i16, imm: u32) -> u64 {
    let mut bytes = [0u8; 8];
    bytes[0] = code;
    // The register nibbles are bit fields: low nibble first on little-endian machines.
    bytes[1] = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
    bytes[2..4].copy_from_slice(&off.to_ne_bytes());
    bytes[4..8].copy_from_slice(&imm.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn assemble(rules: &[Rule]) -> Vec<u64> {
    const LDX_W: u8 = 0x61;
    const AND_IMM: u8 = 0x57;
    const RSH_IMM: u8 = 0x77;
    const MOV_IMM: u8 = 0xb7;
    const MOV_REG: u8 = 0xbf;
    const JNE_IMM32: u8 = 0x56;
    const JEQ_IMM32: u8 = 0x16;
    const EXIT: u8 = 0x95;
    // r2 type, r3 access, r4 major, r5 minor; r1 is the context, then scratch.
    let mut code = vec![
        instruction(LDX_W, 2, 1, 0, 0),
        instruction(MOV_REG, 3, 2, 0, 0),
        instruction(RSH_IMM, 3, 0, 0, 16),
        instruction(AND_IMM, 2, 0, 0, 0xffff),
        instruction(LDX_W, 4, 1, 4, 0),
        instruction(LDX_W, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        // Tests that skip the rule, written with the distance to its end once that is known.
        let mut tests: Vec<(u8, u8, u32)> = Vec::new();
        tests.extend(rule.kind.map(|kind| (JNE_IMM32, 2, kind)));
        tests.extend(rule.major.map(|major| (JNE_IMM32, 4, major)));
        tests.extend(rule.minor.map(|minor| (JNE_IMM32, 5, minor)));
        let all = rule.access == MKNOD | READ | WRITE;
        let certain = tests.is_empty() && all;
        // Access: two instructions and a test, or nothing.
        let access_len = if all { 0 } else { 3 };
        let mut left = tests.len() + access_len + 2;
        for (op, register, value) in tests {
            left -= 1;
            code.push(instruction(op, register, 0, left as i16, value));
        }
        if !all {
            code.push(instruction(MOV_REG, 1, 3, 0, 0));
            if rule.allow {
                // Anything asked for beyond what is allowed: not this rule.
                code.push(instruction(AND_IMM, 1, 0, 0, !rule.access & 7));
                code.push(instruction(JNE_IMM32, 1, 0, 2, 0));
            } else {
                code.push(instruction(AND_IMM, 1, 0, 0, rule.access));
                code.push(instruction(JEQ_IMM32, 1, 0, 2, 0));
            }
        }
        code.push(instruction(MOV_IMM, 0, 0, 0, u32::from(rule.allow)));
        code.push(instruction(EXIT, 0, 0, 0, 0));
        if certain {
            // Matches whatever comes: the kernel refuses programs with unreachable code.
            return code;
        }
    }
    code.push(instruction(MOV_IMM, 0, 0, 0, 1));
    code.push(instruction(EXIT, 0, 0, 0, 0));
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would, for the instructions it uses.
    fn decide(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let mut r = [0u64; 6];
        let mut at = 0;
        loop {
            let bytes = program[at].to_ne_bytes();
            let (dst, src) = ((bytes[1] & 15) as usize, (bytes[1] >> 4) as usize);
            let off = i16::from_ne_bytes([bytes[2], bytes[3]]);
            let imm = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
            at += 1;
            match bytes[0] {
                0x61 => r[dst] = u64::from(context[off as usize / 4]),
                0xbf => r[dst] = r[src],
                0x77 => r[dst] >>= imm,
                0x57 => r[dst] &= u64::from(imm),
                0xb7 => r[dst] = u64::from(imm),
                0x56 if r[dst] as u32 != imm => at += off as usize,
                0x16 if r[dst] as u32 == imm => at += off as usize,
                0x56 | 0x16 => {}
                0x95 => return r[0] == 1,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn rule(json: &str) -> LinuxDeviceCgroup {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn later_rules_override_and_standard_devices_stay() {
        let deny_all = rule(r#"{"allow":false,"access":"rwm"}"#);
        let fuse = rule(r#"{"allow":true,"type":"c","major":10,"minor":229,"access":"rw"}"#);
        let disk_read = rule(r#"{"allow":true,"type":"b","major":8,"access":"r"}"#);
        let before = rule(r#"{"allow":true,"type":"b","major":9,"access":"rwm"}"#);
        let p = program(&[before, deny_all, fuse, disk_read]).unwrap();
        assert!(!decide(&p, 1, READ, 9, 0), "overridden");
        let exit = p.last().unwrap().to_ne_bytes()[0];
        assert_eq!(exit, 0x95, "nothing after what always matches");
        assert!(decide(&p, 2, READ | WRITE, 10, 229));
        assert!(!decide(&p, 2, READ, 10, 200));
        assert!(!decide(&p, 1, READ, 10, 229), "block is not character");
        assert!(decide(&p, 1, READ, 8, 17), "any minor");
        assert!(!decide(&p, 1, READ | WRITE, 8, 17), "more than allowed");
        assert!(decide(&p, 2, READ | WRITE, 1, 3), "null");
        assert!(decide(&p, 2, READ, 136, 77), "any pts");
        assert!(decide(&p, 1, MKNOD, 8, 0), "nodes may be made");
        assert!(!decide(&p, 1, WRITE, 8, 0));
    }

    #[test]
    fn without_a_wildcard_the_rest_is_allowed() {
        let p = program(&[rule(r#"{"allow":false,"type":"c","major":10,"access":"w"}"#)]).unwrap();
        assert!(!decide(&p, 2, READ | WRITE, 10, 1), "any part denied");
        assert!(decide(&p, 2, READ, 10, 1));
        assert!(decide(&p, 1, READ | WRITE, 8, 0));
    }

    #[test]
    fn bad_rules_are_refused() {
        for bad in
            [r#"{"allow":true,"access":"x"}"#, r#"{"allow":true,"type":"p"}"#, r#"{"allow":true,"major":-2}"#]
        {
            assert!(program(&[rule(bad)]).is_err(), "{bad}");
        }
    }
}
