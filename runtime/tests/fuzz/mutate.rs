//! Changes to documents: of their structure, so that parsers are passed, and of their bytes.

use serde_json::{Map, Value, json};

/// xorshift64*: any numbers will do, but the same each time.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// One to four changes.
pub fn document(base: &Value, other: &Value, random: &mut Random) -> Value {
    let mut document = base.clone();
    for _ in 0..=random.below(4) {
        let count = count(&document);
        let at = random.below(count);
        let from = pick(other, random);
        if let Some(place) = nth(&mut document, &mut at.clone()) {
            change(place, from, random);
        }
    }
    document
}

fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum::<usize>(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|below| nth(below, n)),
        Value::Object(map) => map.values_mut().find_map(|below| nth(below, n)),
        _ => None,
    }
}

fn pick(document: &Value, random: &mut Random) -> Value {
    let mut copy = document.clone();
    let mut at = random.below(count(&copy));
    nth(&mut copy, &mut at).map(|found| found.take()).unwrap_or_default()
}

fn change(place: &mut Value, other: Value, random: &mut Random) {
    match (random.below(10), place) {
        (0..=4, place @ (Value::Number(_) | Value::String(_) | Value::Bool(_) | Value::Null)) => {
            *place = scalar(place, random);
        }
        (5, place) => *place = other,
        (_, Value::Array(list)) => change_list(list, other, random),
        (_, Value::Object(map)) => change_map(map, other, random),
        (_, place) => *place = scalar(place, random),
    }
}

fn change_list(list: &mut Vec<Value>, other: Value, random: &mut Random) {
    let at = random.below(list.len());
    match random.below(6) {
        0 if !list.is_empty() => drop(list.remove(at)),
        1 if !list.is_empty() => list.push(list[at].clone()),
        2 if !list.is_empty() => {
            let one = list[at].clone();
            let times = [3, 70, 1000][random.below(3)];
            list.extend(std::iter::repeat_n(one, times));
        }
        3 => list.clear(),
        4 if list.len() > 1 => {
            let last = list.len() - 1;
            list.swap(at, last);
        }
        _ => list.push(other),
    }
}

fn change_map(map: &mut Map<String, Value>, other: Value, random: &mut Random) {
    let names: Vec<String> = map.keys().cloned().collect();
    let name = names.get(random.below(names.len())).cloned().unwrap_or_default();
    match random.below(5) {
        0 | 1 => drop(map.remove(&name)),
        2 => {
            let taken = map.remove(&name).unwrap_or_default();
            let text = scalar(&json!(name), random);
            map.insert(text.as_str().unwrap_or("x").to_string(), taken);
        }
        3 => drop(map.insert(name, other)),
        _ => drop(map.insert(name, scalar(&Value::Null, random))),
    }
}

/// Values at the edges of types, and texts that mean something to paths, names and the kernel.
fn scalar(was: &Value, random: &mut Random) -> Value {
    const NUMBERS: [i128; 22] = [
        0,
        1,
        -1,
        2,
        3,
        7,
        63,
        64,
        255,
        256,
        4095,
        4096,
        65535,
        65536,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1_0000_0000,
        i64::MAX as i128,
        i64::MIN as i128,
        u64::MAX as i128,
        1_000_000_007,
    ];
    const TEXTS: [&str; 30] = [
        "",
        "/",
        ".",
        "..",
        "/..",
        "/proc/self/fd/3",
        "/proc",
        "/dev/null",
        "//",
        "/a/../b",
        "\0",
        "a\0b",
        "\n",
        " ",
        "-1",
        "0",
        "4294967296",
        "max",
        "rwm",
        "c",
        "b",
        "a",
        "SCMP_ACT_ERRNO",
        "CAP_SYS_ADMIN",
        "RLIMIT_NOFILE",
        "net.ipv4.ip_forward",
        "ä\u{202e}",
        "a=b=c",
        "%s%n",
        "0-4294967295,7",
    ];
    match random.below(8) {
        0 => Value::Null,
        1 => json!(random.below(2) == 0),
        2 => json!(random.next()),
        3 => json!(1e308),
        4 | 5 => {
            let number = NUMBERS[random.below(NUMBERS.len())];
            let near = number + random.below(3) as i128 - 1;
            i64::try_from(near).map(Value::from).or(u64::try_from(near).map(Value::from)).unwrap_or_default()
        }
        6 => match was {
            Value::String(text) => json!(text_like(text, random)),
            _ => json!(TEXTS[random.below(TEXTS.len())]),
        },
        _ => json!(TEXTS[random.below(TEXTS.len())]),
    }
}

fn text_like(text: &str, random: &mut Random) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    let at = random.below(chars.len());
    match random.below(6) {
        0 if !chars.is_empty() => _ = chars.remove(at),
        1 => chars.insert(at, ['/', '.', '\0', ',', '-', ':', '=', 'x', 'é'][random.below(9)]),
        2 => chars.truncate(at),
        3 => return text.repeat(2 + random.below(300)),
        4 => return format!("/../{text}"),
        _ => return text.to_uppercase(),
    }
    chars.into_iter().collect()
}

/// Flips, cuts and copies.
pub fn bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(6) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        match random.below(5) {
            0 => bytes[at] = random.next() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes.truncate(at),
            3 => {
                let end = (at + 1 + random.below(64)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            // Nesting.
            _ => {
                let deep = [b"[".repeat(200), br#"{"a":"#.repeat(200)][random.below(2)].clone();
                bytes.splice(at..at, deep);
            }
        }
    }
}
