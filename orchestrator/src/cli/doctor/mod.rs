//! `doctor`: what this kernel and host offer, what is missing, and the fix.
//!
//! What can be tried is tried, in namespaces and mounts that vanish with the attempt; nothing is looked up in tables
//! of kernel versions that could be asked instead.

mod host;
mod kernel;
mod network;

use serde::Serialize;

use super::Globals;
use super::context::Context;
use super::error::Outcome;
use super::print::{self, printable};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// `json` for programs
    #[arg(long, short, value_name = "json", value_parser = ["json"])]
    output: Option<String>,
}

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// There.
    Ok,
    /// Not there or not well; Podyard works with less.
    Warn,
    /// Not there; pods cannot run.
    Missing,
}

/// One thing looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do; empty if nothing.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub fix: &'static str,
}

impl Check {
    /// It is there.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Check {
        Check { name, verdict: Verdict::Ok, found: found.into(), fix: "" }
    }

    /// Podyard works with less.
    pub fn warn(name: &'static str, found: impl Into<String>, fix: &'static str) -> Check {
        Check { name, verdict: Verdict::Warn, found: found.into(), fix }
    }

    /// Pods cannot run.
    pub fn missing(name: &'static str, found: impl Into<String>, fix: &'static str) -> Check {
        Check { name, verdict: Verdict::Missing, found: found.into(), fix }
    }
}

/// 1 if something is missing without which pods cannot run.
pub fn run(globals: &Globals, args: &Args) -> Outcome {
    let context = Context::new(globals);
    let mut checks = host::checks();
    checks.extend(kernel::checks());
    checks.extend(network::checks());
    checks.push(host::daemon(&globals.socket()));
    let missing = checks.iter().filter(|check| check.verdict == Verdict::Missing).count();
    match args.output {
        Some(_) => context.text(&print::json(&serde_json::json!({"ok": missing == 0, "checks": checks})))?,
        None => context.text(&page(&checks, missing))?,
    }
    Ok(u8::from(missing > 0))
}

fn page(checks: &[Check], missing: usize) -> String {
    let rows: Vec<Vec<String>> = checks
        .iter()
        .map(|check| {
            let sign = match check.verdict {
                Verdict::Ok => "ok",
                Verdict::Warn => "warn",
                Verdict::Missing => "MISSING",
            };
            vec![sign.to_string(), check.name.to_string(), printable(&check.found)]
        })
        .collect();
    let table = print::Columns::default().lay_out(&rows);
    let mut text = String::new();
    for (check, line) in checks.iter().zip(table.lines()) {
        text += line;
        text.push('\n');
        if !check.fix.is_empty() {
            text += &format!("          fix: {}\n", check.fix);
        }
    }
    let warned = checks.iter().filter(|check| check.verdict == Verdict::Warn).count();
    text += &match (missing, warned) {
        (0, 0) => "\nEverything Podyard can use is here.\n".to_string(),
        (0, 1) => "\nPods can run; one thing could be better.\n".to_string(),
        (0, warned) => format!("\nPods can run; {warned} things could be better.\n"),
        (1, _) => "\nPods cannot run: one thing is missing.\n".to_string(),
        (missing, _) => format!("\nPods cannot run: {missing} things are missing.\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_tell_the_fix() {
        let checks = [Check::ok("kernel", "6.1"), Check::missing("veth", "EOPNOTSUPP", "modprobe veth")];
        let expect = "ok        kernel   6.1\nMISSING   veth     EOPNOTSUPP\n          fix: modprobe veth\n\nPods cannot run: one thing is missing.\n";
        assert_eq!(page(&checks, 1), expect);
    }

    #[test]
    fn every_check_comes_to_a_verdict() {
        let mut checks = host::checks();
        checks.extend(kernel::checks());
        checks.extend(network::checks());
        for check in checks {
            assert!(!check.found.is_empty(), "{check:?}");
            assert_eq!(check.fix.is_empty(), check.verdict == Verdict::Ok, "{check:?}");
        }
    }
}
