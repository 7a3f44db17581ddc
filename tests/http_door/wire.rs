//! A connection in the test's hands: bytes out, answers in, nothing that a client library would mend.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{PATIENCE, Rig};

/// One answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in the order in which they came.
    pub headers: Vec<(String, String)>,
    /// Without its chunks' frames.
    pub body: String,
}

impl Answer {
    /// The value of a header that comes once at most.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(header, _)| header == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} twice: {self:?}");
        value
    }

    /// The `code` of OpenAI's error body.
    pub fn code(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let body: serde_json::Value = serde_json::from_str(&self.body).expect("JSON");
        assert!(body["error"]["message"].as_str().is_some_and(|text| !text.is_empty()), "{body}");
        body["error"]["code"].as_str().expect("a code").to_owned()
    }
}

pub struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub async fn connect(rig: &Rig) -> Self {
        let stream = TcpStream::connect(rig.running.address()).await.expect("it listens");
        Self { stream, read: Vec::new() }
    }

    /// A connection that has sent this.
    pub async fn with(rig: &Rig, bytes: impl AsRef<[u8]>) -> Self {
        let mut wire = Self::connect(rig).await;
        wire.send(bytes).await;
        wire
    }

    /// The other side may have closed already, which its answer then says.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    /// The next answer.
    pub async fn answer(&mut self) -> Answer {
        self.answer_to(false).await
    }

    /// The next answer, to HEAD: it has no body, whatever its length says.
    pub async fn answer_to_head(&mut self) -> Answer {
        self.answer_to(true).await
    }

    async fn answer_to(&mut self, head: bool) -> Answer {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            assert!(self.more().await, "closed before an answer: {:?}", self.text());
        };
        let text = String::from_utf8(self.read.drain(..end + 4).collect()).expect("ASCII");
        let mut lines = text.trim_end().split("\r\n");
        let status = lines.next().expect("a status line");
        let rest = status.strip_prefix("HTTP/1.1 ").or(status.strip_prefix("HTTP/1.0 "));
        let status = rest.expect("a version")[..3].parse().expect("a status");
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").expect("name and value");
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let mut answer =
            Answer { status, headers: lines.map(header).collect(), body: String::new() };
        let has_body = !head && status >= 200 && status != 204 && status != 304;
        if has_body {
            answer.body = self.body(&answer).await;
        }
        answer
    }

    async fn body(&mut self, answer: &Answer) -> String {
        let mut body = Vec::new();
        if let Some(length) = answer.header("content-length") {
            let length = length.parse().expect("a length");
            assert_eq!(answer.header("transfer-encoding"), None);
            body = self.exactly(length).await;
        } else if answer.header("transfer-encoding") == Some("chunked") {
            loop {
                let line = self.line().await;
                let size = usize::from_str_radix(&line, 16).expect("a size");
                body.extend(self.exactly(size).await);
                assert_eq!(self.line().await, "");
                if size == 0 {
                    break;
                }
            }
        } else {
            while self.more().await {}
            body = std::mem::take(&mut self.read);
        }
        String::from_utf8(body).expect("UTF-8")
    }

    async fn line(&mut self) -> String {
        loop {
            if let Some(at) = self.read.windows(2).position(|two| two == b"\r\n") {
                let line = self.read.drain(..at + 2).collect();
                return String::from_utf8(line).expect("ASCII").trim_end().to_owned();
            }
            assert!(self.more().await, "closed within a body: {:?}", self.text());
        }
    }

    async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            assert!(self.more().await, "closed within a body: {:?}", self.text());
        }
        self.read.drain(..length).collect()
    }

    /// Whether there was more.
    async fn more(&mut self) -> bool {
        let mut bytes = [0; 16 << 10];
        let read = tokio::time::timeout(PATIENCE, self.stream.read(&mut bytes)).await;
        let count = read.expect("in time").unwrap_or(0);
        self.read.extend_from_slice(&bytes[..count]);
        count > 0
    }

    /// Waits for the other side to close without another word.
    pub async fn is_closed(&mut self) -> bool {
        !self.more().await && self.read.is_empty()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }
}
