//! What a probe or a hook does to a container, from outside: run a program in it, ask it over HTTP, connect, or sleep.
//!
//! Connections are made from the node's network namespace, as a kubelet would make them.
//!
//! Source: Kubernetes API reference, Probe and LifecycleHandler.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use api::Object;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::error::{Error, Kind, Result};
use crate::exec::{Streams, exec};
use crate::plan::Run;
use crate::pod::{Pod, container};

/// Something to do to a container from outside.
#[derive(Clone, PartialEq, Debug)]
pub enum Act {
    /// Run a program in it; success is exit code 0.
    Exec(Vec<String>),
    /// GET; success is an answer from 200 to 399.
    Http {
        /// Where to.
        address: SocketAddr,
        /// What for.
        path: String,
        /// Name and value of each.
        headers: Vec<(String, String)>,
    },
    /// Connect.
    Tcp(SocketAddr),
    /// Let so much time go by.
    Sleep(Duration),
}

impl Act {
    /// Reads the handler `wish` of a container of `pod`.
    ///
    /// # Errors
    /// `Invalid` if it names no handler, or a port or an address that the pod does not have.
    pub fn read(pod: &Object, container: &str, wish: &Value) -> Result<Act> {
        read(pod, container, wish)
    }

    /// Does it, and waits for what comes of it.
    ///
    /// # Errors
    /// `Conflict` if it says no; `Busy` or the kernel's answer if it cannot be asked.
    ///
    /// # Cancellation
    /// A program that runs is killed.
    pub async fn perform(&self, pod: &Pod, run: &Run) -> Result<()> {
        match self {
            Act::Exec(command) => execute(pod, run, command).await,
            Act::Tcp(address) => connect(pod, *address).await.map(drop),
            Act::Http { address, path, headers } => get(pod, *address, path, headers).await,
            Act::Sleep(pause) => {
                tokio::time::sleep(*pause).await;
                Ok(())
            }
        }
    }
}

async fn execute(pod: &Pod, run: &Run, command: &[String]) -> Result<()> {
    let session = exec(pod, run, command, Streams::default()).await?;
    match session.exit.wait().await? {
        0 => Ok(()),
        code => Err(Error::new(Kind::Conflict, format!("{command:?} exited with {code}"))),
    }
}

async fn connect(pod: &Pod, address: SocketAddr) -> Result<tokio::net::TcpStream> {
    let namespace = pod.host().network.namespace();
    namespace.connect(address).await.map_err(|error| Error::io(format!("connect to {address}"), error))
}

async fn get(pod: &Pod, address: SocketAddr, path: &str, headers: &[(String, String)]) -> Result<()> {
    let what = || format!("GET http://{address}{path}");
    let stream = connect(pod, address).await?;
    let failed = |error: hyper::Error| Error::with(Kind::Busy, what(), error);
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let driver = tokio::spawn(connection);
    let mut request = hyper::Request::get(path).header("user-agent", "podyard-probe").header("accept", "*/*");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        request = request.header("host", address.to_string());
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request =
        request.body(Empty::<Bytes>::new()).map_err(|error| Error::with(Kind::Invalid, what(), error))?;
    let status = sender.send_request(request).await.map_err(failed)?.status().as_u16();
    driver.abort();
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(Error::new(Kind::Conflict, format!("{} answers {status}", what())))
    }
}

fn read(pod: &Object, name: &str, wish: &Value) -> Result<Act> {
    if let Some(command) = wish["exec"]["command"].as_array() {
        return Ok(Act::Exec(command.iter().filter_map(|part| part.as_str().map(str::to_owned)).collect()));
    }
    let entry = container(pod, name)?;
    let invalid = |text: &str| Error::new(Kind::Invalid, text.to_owned());
    let address = |action: &Value| -> Result<SocketAddr> {
        let host =
            action["host"].as_str().filter(|host| !host.is_empty()).or_else(|| pod.get_str("status.podIP"));
        let host: Ipv4Addr = host
            .and_then(|host| host.parse().ok())
            .ok_or_else(|| invalid("the host is no IPv4 address, or the pod has none"))?;
        let port =
            port(entry, &action["port"]).ok_or_else(|| invalid("the port is no port of the container"))?;
        Ok(SocketAddr::from((host, port)))
    };
    if let Some(http) = wish.get("httpGet").filter(|http| http.is_object()) {
        if http["scheme"].as_str().is_some_and(|scheme| !scheme.eq_ignore_ascii_case("http")) {
            return Err(invalid("HTTPS is not supported yet"));
        }
        let path = http["path"].as_str().filter(|path| !path.is_empty()).unwrap_or("/");
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let headers = http["httpHeaders"].as_array().into_iter().flatten();
        let headers = headers.filter_map(|header| {
            Some((header["name"].as_str()?.to_owned(), header["value"].as_str()?.to_owned()))
        });
        return Ok(Act::Http { address: address(http)?, path, headers: headers.collect() });
    }
    if let Some(tcp) = wish.get("tcpSocket").filter(|tcp| tcp.is_object()) {
        return Ok(Act::Tcp(address(tcp)?));
    }
    if let Some(sleep) = wish.get("sleep").filter(|sleep| sleep.is_object()) {
        return Ok(Act::Sleep(Duration::from_secs(sleep["seconds"].as_u64().unwrap_or(0))));
    }
    Err(invalid("there is none of exec, httpGet, tcpSocket and sleep"))
}

/// A port by number or by the container's name for it.
fn port(container: &Value, wish: &Value) -> Option<u16> {
    if let Some(number) = wish.as_u64() {
        return u16::try_from(number).ok();
    }
    let name = wish.as_str()?;
    let ports = container["ports"].as_array().into_iter().flatten();
    let named = ports.filter(|port| port["name"] == name).find_map(|port| port["containerPort"].as_u64());
    named.and_then(|number| u16::try_from(number).ok()).or_else(|| name.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod() -> Object {
        Object(json!({
            "spec": {"containers": [{"name": "c", "ports": [{"name": "web", "containerPort": 8080}]}]},
            "status": {"podIP": "10.244.0.5"}
        }))
    }

    #[test]
    fn what_a_handler_does() {
        let check = |wish: Value, expect: Act| assert_eq!(read(&pod(), "c", &wish).unwrap(), expect);
        let address: SocketAddr = "10.244.0.5:8080".parse().unwrap();
        check(json!({"exec": {"command": ["a", "b"]}}), Act::Exec(vec!["a".into(), "b".into()]));
        check(json!({"tcpSocket": {"port": 8080}}), Act::Tcp(address));
        check(json!({"tcpSocket": {"port": "web"}}), Act::Tcp(address));
        check(
            json!({"httpGet": {"port": "web", "path": "ok", "httpHeaders": [{"name": "A", "value": "b"}]}}),
            Act::Http { address, path: "/ok".into(), headers: vec![("A".into(), "b".into())] },
        );
        check(json!({"sleep": {"seconds": 3}}), Act::Sleep(Duration::from_secs(3)));
        for bad in [
            json!({}),
            json!({"tcpSocket": {"port": "nope"}}),
            json!({"httpGet": {"port": 1, "scheme": "HTTPS"}}),
        ] {
            assert!(read(&pod(), "c", &bad).is_err(), "{bad}");
        }
    }
}
