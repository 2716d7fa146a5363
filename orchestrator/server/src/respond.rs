//! Responses: JSON bodies, `Status` errors, warnings, and reading bounded requests.

use std::convert::Infallible;
use std::io;

use api::{Error, Kind};
use futures::StreamExt;
use futures::stream::Stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

/// What every response carries.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Largest request body, bytes. The API server's own limit for JSON.
pub const BODY_BYTES_MAX: usize = 3 << 20;

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A whole body.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// A body that goes on until the stream ends.
pub fn stream(chunks: impl Stream<Item = io::Result<Bytes>> + Send + 'static) -> Body {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

/// A JSON answer.
pub fn json_response(code: StatusCode, value: &Value) -> Response<Body> {
    bytes_response(code, value.to_string())
}

/// An answer that is JSON already.
pub fn bytes_response(code: StatusCode, json: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(json));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A plain text answer.
pub fn text_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A refusal, as a `Status`.
pub fn error_response(error: &Error) -> Response<Body> {
    let code = StatusCode::from_u16(error.code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json_response(code, &error.to_status_json());
    if let Kind::Busy = error.kind() {
        let seconds = error.details.retry_after_seconds.max(1);
        if let Ok(value) = HeaderValue::from_str(&seconds.to_string()) {
            response.headers_mut().insert(RETRY_AFTER, value);
        }
    }
    response
}

/// Adds `Warning: 299 - "…"` headers. Source: RFC 9111 section 5.5; Kubernetes API conventions, "Warnings".
pub fn with_warnings(mut response: Response<Body>, warnings: &[String]) -> Response<Body> {
    for warning in warnings {
        if let Ok(value) = HeaderValue::from_str(&warning_header(warning)) {
            response.headers_mut().append("warning", value);
        }
    }
    response
}

/// A quoted-string keeps printable ASCII; what else a name or message may hold becomes `?`.
fn warning_header(text: &str) -> String {
    let quoted = text.chars().fold(String::new(), |mut out, letter| {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            ' '..='~' => out.push(letter),
            _ => out.push('?'),
        }
        out
    });
    format!("299 - \"{quoted}\"")
}

/// Reads a whole request body.
///
/// # Errors
/// `BadRequest` if it is larger than [`BODY_BYTES_MAX`] or breaks off.
pub async fn read_body(body: Incoming) -> Result<Bytes, Error> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) => {
            Err(Error::bad_request(format!("read request body (at most {BODY_BYTES_MAX} bytes): {error}")))
        }
    }
}

/// Parses a JSON body; an empty one is `null`.
///
/// # Errors
/// `BadRequest` with the place of the mistake.
pub fn parse_json(bytes: &[u8]) -> Result<Value, Error> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes)
        .map_err(|error| Error::bad_request(format!("request body is not JSON: {error}")))
}

/// The `Status` that tells of success.
pub fn success(details: Value) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_stays_one_header() {
        assert_eq!(warning_header("field \"a\"\r\nX: y"), "299 - \"field \\\"a\\\"??X: y\"");
    }
}
