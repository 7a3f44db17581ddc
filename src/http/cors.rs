//! Which web pages may use the door from a browser: the answers to `Origin` and to preflights (the Fetch standard, "CORS protocol").

use actix_web::http::Method;
use actix_web::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderMap, HeaderValue, ORIGIN, VARY,
};

/// What a page may read of an answer beside the headers that it always may.
const EXPOSED: HeaderValue =
    HeaderValue::from_static("x-request-id, x-inferno-ignored, retry-after, retry-after-ms");

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, DELETE");

/// How long, in seconds, a browser may go by a preflight: two hours is the most that any of them does.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("7200");

/// The pages that may; see `http.allowed_origins`.
#[derive(Debug, Default)]
pub(super) struct AllowedOrigins {
    any: bool,
    origins: Vec<String>,
}

impl AllowedOrigins {
    /// Those of a configuration that has been checked.
    pub(super) fn new(origins: &[String]) -> Self {
        Self { any: origins.iter().any(|origin| origin == "*"), origins: origins.to_vec() }
    }

    /// Writes into an answer what its reader's browser wants to know.
    pub(super) fn write(&self, method: &Method, asked: &HeaderMap, answer: &mut HeaderMap) {
        if self.origins.is_empty() {
            return;
        }
        if !self.any {
            // Another page's answer is another one, for every cache on the way.
            answer.append(VARY, HeaderValue::from_static("origin"));
        }
        let Some(origin) = asked.get(ORIGIN).and_then(|origin| self.allowed(origin)) else {
            return;
        };
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if *method == Method::OPTIONS && asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            answer.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
            answer.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE_S);
            // A client may send any header: those that the node does not know change nothing.
            if let Some(headers) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
                answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
                answer.append(VARY, HeaderValue::from_static("access-control-request-headers"));
            }
        } else {
            answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }

    fn allowed(&self, origin: &HeaderValue) -> Option<HeaderValue> {
        if self.any {
            return Some(HeaderValue::from_static("*"));
        }
        let is_listed = self.origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes());
        is_listed.then(|| origin.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(allowed: &[&str], method: Method, asked: &[(&str, &str)]) -> Vec<String> {
        let allowed: Vec<String> = allowed.iter().map(|&origin| origin.to_owned()).collect();
        let mut headers = HeaderMap::new();
        for (name, value) in asked {
            let name = name.parse().expect("a name");
            headers.insert(name, HeaderValue::from_str(value).expect("a value"));
        }
        let mut answer = HeaderMap::new();
        AllowedOrigins::new(&allowed).write(&method, &headers, &mut answer);
        let told = answer
            .iter()
            .map(|(name, value)| format!("{name}: {}", String::from_utf8_lossy(value.as_bytes())));
        let mut told: Vec<String> = told.collect();
        told.sort();
        told
    }

    const PAGE: (&str, &str) = ("origin", "https://a.example");
    const EXPOSES: &str = "access-control-expose-headers: x-request-id, x-inferno-ignored, retry-after, retry-after-ms";

    #[test]
    fn without_allowed_pages_nothing_is_said() {
        assert!(answered(&[], Method::GET, &[PAGE]).is_empty());
        assert!(answered(&[], Method::OPTIONS, &[PAGE]).is_empty());
    }

    #[test]
    fn an_allowed_page_is_named_and_another_is_not() {
        let told = answered(&["https://b.example", "https://a.example"], Method::POST, &[PAGE]);
        let origin = "access-control-allow-origin: https://a.example";
        assert_eq!(told, [origin, EXPOSES, "vary: origin"]);
        assert_eq!(answered(&["https://b.example"], Method::POST, &[PAGE]), ["vary: origin"]);
        assert_eq!(answered(&["https://a.example"], Method::POST, &[]), ["vary: origin"]);
        let told = answered(&["*"], Method::POST, &[PAGE]);
        assert_eq!(told, ["access-control-allow-origin: *", EXPOSES]);
    }

    #[test]
    fn a_preflight_is_told_methods_headers_and_for_how_long() {
        let asked = [
            PAGE,
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        let told = answered(&["https://a.example"], Method::OPTIONS, &asked);
        assert_eq!(
            told,
            [
                "access-control-allow-headers: authorization,content-type",
                "access-control-allow-methods: GET, HEAD, POST, DELETE",
                "access-control-allow-origin: https://a.example",
                "access-control-max-age: 7200",
                "vary: access-control-request-headers",
                "vary: origin",
            ]
        );
    }
}
