//! Writing YAML as kubectl does: block style, keys in order, lists not indented below their key.
//!
//! Strings stay plain only where no reader, YAML 1.1 or 1.2, could take them for anything else.

use serde_json::Value;

/// A tree as a YAML document.
pub fn write(value: &Value) -> String {
    let mut out = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => object(&mut out, value, 0, false),
        Value::Array(items) if !items.is_empty() => array(&mut out, value, 0),
        other => {
            scalar(&mut out, other, 0);
            out.push('\n');
        }
    }
    out
}

/// `continued` means that the first key stands on a line begun already, after `- `.
fn object(out: &mut String, value: &Value, indent: usize, continued: bool) {
    let Some(map) = value.as_object() else { return };
    for (index, (key, value)) in map.iter().enumerate() {
        if index > 0 || !continued {
            pad(out, indent);
        }
        text(out, key);
        out.push(':');
        match value {
            Value::Object(map) if !map.is_empty() => {
                out.push('\n');
                object(out, value, indent + 2, false);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                array(out, value, indent);
            }
            other => {
                out.push(' ');
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn array(out: &mut String, value: &Value, indent: usize) {
    for item in value.as_array().into_iter().flatten() {
        pad(out, indent);
        out.push_str("- ");
        match item {
            Value::Object(map) if !map.is_empty() => object(out, item, indent + 2, true),
            Value::Array(items) if !items.is_empty() => {
                out.push('\n');
                array(out, item, indent + 2);
            }
            other => {
                scalar(out, other, indent + 2);
                out.push('\n');
            }
        }
    }
}

fn pad(out: &mut String, indent: usize) {
    out.extend(std::iter::repeat_n(' ', indent));
}

fn scalar(out: &mut String, value: &Value, indent: usize) {
    match value {
        Value::String(string) if is_block(string) => block(out, string, indent),
        Value::String(string) => text(out, string),
        Value::Object(_) => out.push_str("{}"),
        Value::Array(_) => out.push_str("[]"),
        other => out.push_str(&other.to_string()),
    }
}

/// Several printable lines that a literal block gives back unchanged.
fn is_block(text: &str) -> bool {
    let printable = text.chars().all(|c| c == '\n' || c == '\t' || (!c.is_control() && c != '\u{feff}'));
    let first = text.chars().next();
    text.trim_end_matches('\n').contains('\n')
        && printable
        && first.is_some_and(|c| !c.is_whitespace())
        && text.lines().all(|line| line == line.trim_end())
}

fn block(out: &mut String, text: &str, indent: usize) {
    let body = text.trim_end_matches('\n');
    out.push_str(match text.len() - body.len() {
        0 => "|-",
        1 => "|",
        _ => "|+",
    });
    let lines = text.strip_suffix('\n').unwrap_or(text);
    for line in lines.split('\n') {
        out.push('\n');
        if !line.is_empty() {
            pad(out, indent);
            out.push_str(line);
        }
    }
}

fn text(out: &mut String, text: &str) {
    if is_plain(text) {
        out.push_str(text);
    } else {
        // A JSON string is a YAML double-quoted scalar.
        out.push_str(&Value::from(text).to_string());
    }
}

fn is_plain(text: &str) -> bool {
    const WORDS: &[&str] = &["true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf"];
    let first = text.chars().next();
    let harmless = |c: char| c.is_ascii_alphanumeric() || " _-./:=+,@()<>$%;\\^*'\"~!?&[]{}|`".contains(c);
    first.is_some_and(|c| c.is_ascii_alphabetic() || "_/.$(<=+^;\\".contains(c))
        && text.chars().all(harmless)
        && !text.ends_with([' ', ':'])
        && !text.contains(": ")
        && !text.contains(" #")
        && !WORDS.contains(&text.to_ascii_lowercase().as_str())
        // `.5`, `+1`, `.inf`: what begins like a number must not be one. `=` and `<<` are YAML 1.1's own.
        && (first.is_none_or(|c| !".+".contains(c)) || text.contains('/'))
        && !text.starts_with("=")
        && !text.starts_with("<<")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn looks_like_kubectls() {
        let value = json!({"apiVersion": "v1", "spec": {"containers": [{"name": "a", "args": ["-c", "x: y"], "env": []}], "size": 1},
            "text": "a\nb\n"});
        let expect = "apiVersion: v1\nspec:\n  containers:\n  - args:\n    - \"-c\"\n    - \"x: y\"\n    env: []\n    name: a\n  size: 1\ntext: |\n  a\n  b\n";
        assert_eq!(write(&value), expect);
    }

    #[test]
    fn whatever_is_written_reads_back() {
        let strings = [
            "",
            " ",
            "a",
            "yes",
            "No",
            "true",
            "null",
            "~",
            "1",
            "1.5",
            "1e3",
            "0x1f",
            "0o7",
            "0644",
            "1_000",
            ".5",
            "+1",
            ".inf",
            "-",
            "- a",
            "a: b",
            "a #b",
            "a:",
            ":a",
            "#a",
            "a\nb",
            "a\n\nb\n\n",
            "\na",
            "a\n b",
            " a\nb",
            "a \nb",
            "é",
            "\u{1}",
            "\t",
            "'a'",
            "\"",
            "a'b",
            "[x]",
            "{x}",
            "*a",
            "&a",
            "!a",
            "%a",
            "@a",
            "`a`",
            "=",
            "<<",
            "2026-01-02",
            "2026-01-02T03:04:05Z",
            "12:30:45",
            "a\\b",
            "?",
            "? a",
            "|",
            ">",
            "a,b",
            "/a/b",
            "./a",
            "..",
            "\u{feff}a",
            "a\r\nb",
        ];
        for string in strings {
            for value in [json!({"k": string, "l": [string, {"m": string}]}), json!({string: 1})] {
                let text = write(&value);
                let back: Value =
                    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
                assert_eq!(back, value, "{text}");
            }
        }
    }

    #[test]
    fn nested_lists() {
        let value = json!([[1, [2]], {"a": [[{"b": null}]]}, {}, []]);
        let back: Value = serde_saphyr::from_str(&write(&value)).unwrap();
        assert_eq!(back, value);
    }
}
