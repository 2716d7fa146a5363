//! Query strings and percent-encoding. Source: RFC 3986 section 2.1; the WHATWG URL standard for `+`.

/// The decoded parameters of a query string, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Reads `a=b&c=d`; pieces that are not valid UTF-8 once decoded keep a replacement character.
    pub fn parse(text: &str) -> Query {
        let pairs = text.split('&').filter(|piece| !piece.is_empty());
        Query(
            pairs
                .map(|piece| {
                    let (name, value) = piece.split_once('=').unwrap_or((piece, ""));
                    (decode(name, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value of a parameter; an empty one counts as absent.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(found, _)| found == name)?;
        Some(found.1.as_str()).filter(|value| !value.is_empty())
    }

    /// Every value of a parameter, in order.
    pub fn all(&self, name: &str) -> Vec<String> {
        self.0.iter().filter(|(found, _)| found == name).map(|(_, value)| value.clone()).collect()
    }

    /// A flag: `true`, `1` and a bare name mean yes, as in Kubernetes.
    pub fn flag(&self, name: &str) -> bool {
        self.0
            .iter()
            .find(|(found, _)| found == name)
            .is_some_and(|(_, value)| !matches!(value.as_str(), "false" | "0"))
    }

    /// A non-negative number.
    ///
    /// # Errors
    /// The parameter's name and value, if it is not one.
    pub fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.parse().map(Some).map_err(|_| format!("{name}: {value:?} is not a non-negative integer"))
    }
}

/// Undoes percent-encoding.
pub fn decode(text: &str, plus_is_space: bool) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' if plus_is_space => out.push(b' '),
            b'%' => {
                let rest = bytes.as_slice_of_two();
                match rest {
                    Some(value) => {
                        out.push(value);
                        bytes.nth(1);
                    }
                    None => out.push(b'%'),
                }
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Looks at the two hex digits ahead without taking them.
trait HexAhead {
    fn as_slice_of_two(&self) -> Option<u8>;
}

impl HexAhead for std::str::Bytes<'_> {
    fn as_slice_of_two(&self) -> Option<u8> {
        let mut ahead = self.clone();
        let high = char::from(ahead.next()?).to_digit(16)?;
        let low = char::from(ahead.next()?).to_digit(16)?;
        u8::try_from(high * 16 + low).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_decoded_once() {
        let query =
            Query::parse("labelSelector=app%3Dweb%2Ctier+in+(a)&watch=1&command=sh&command=-c&x=%zz&e=");
        assert_eq!(query.get("labelSelector"), Some("app=web,tier in (a)"));
        assert_eq!(query.all("command"), ["sh", "-c"]);
        assert_eq!(query.get("x"), Some("%zz"), "what is not an escape stays");
        assert_eq!(query.get("e"), None);
        assert!(query.flag("watch") && !query.flag("follow"));
        assert!(!Query::parse("watch=false").flag("watch"));
        assert_eq!(Query::parse("limit=5").number("limit"), Ok(Some(5)));
        assert!(Query::parse("limit=-5").number("limit").is_err());
    }

    #[test]
    fn a_plus_in_a_path_is_a_plus() {
        assert_eq!(decode("a+b%2Fc", false), "a+b/c");
        assert_eq!(decode("%e4%bd%a0", false), "你");
        assert_eq!(decode("%f", false), "%f");
    }
}
