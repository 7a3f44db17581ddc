//! The metrics port: a listener of its own, where load balancers ask how the node is. It answers until everything else has ended.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::guard::{Any, Get, Head};
use actix_web::http::StatusCode;
use actix_web::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{App, FromRequest, Handler, HttpResponse, HttpServer, Resource, Responder};
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::task::JoinHandle;

use super::Config;
use super::vitals::NodeVitals;
use super::wire::Peer;
use crate::clock::Timestamp;
use crate::health::{Status, Vitals};
use crate::lifeline::Lifeline;
use crate::telemetry::Metrics;

/// Each load balancer has one or two; beyond, they wait for a place.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to ask.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// What is known beside the health message, for the port to show and for the registrar to keep up.
#[derive(Default)]
pub(super) struct PortFigures(Mutex<ShownFigures>);

#[derive(Default)]
struct ShownFigures {
    /// Whom each load balancer knows, by its own number.
    peers: BTreeMap<usize, Vec<Peer>>,
    /// The share of processor time that was used over the last second.
    busy: Option<f64>,
}

impl PortFigures {
    pub(super) fn set_peers(&self, load_balancer: usize, peers: Vec<Peer>) {
        self.change(|shown| shown.peers.insert(load_balancer, peers));
    }

    pub(super) fn set_busy(&self, busy: Option<f64>) {
        self.change(|shown| shown.busy = busy);
    }

    fn busy(&self) -> Option<f64> {
        self.change(|shown| shown.busy)
    }

    /// All that some load balancer knows, by id; of two entries the newer.
    fn peers(&self) -> Vec<Peer> {
        let all: Vec<Peer> = self.change(|shown| shown.peers.values().flatten().cloned().collect());
        let mut newest: BTreeMap<String, Peer> = BTreeMap::new();
        for peer in all {
            let known = newest.get(&peer.id).map(|known| known.last_updated);
            if known.is_none_or(|known| known < peer.last_updated) {
                newest.insert(peer.id.clone(), peer);
            }
        }
        newest.into_values().collect()
    }

    fn change<T>(&self, change: impl FnOnce(&mut ShownFigures) -> T) -> T {
        // Only whole values are written under the lock.
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What the port shows.
pub struct PortDeps {
    /// How the node is.
    pub vitals: Arc<Vitals>,
    /// How its requests ended.
    pub metrics: Arc<Metrics>,
    /// What `/telemetry` shows.
    pub prometheus: PrometheusHandle,
}

struct PortData {
    deps: PortDeps,
    figures: Arc<PortFigures>,
}

/// An open metrics port.
pub struct MetricsPort {
    address: SocketAddr,
    figures: Arc<PortFigures>,
    handle: ServerHandle,
    server: JoinHandle<io::Result<()>>,
}

impl MetricsPort {
    /// Binds and serves on a thread of its own. Call it inside a tokio or actix runtime, on which the server's own (nearly idle)
    /// task then runs; it holds `alive`.
    ///
    /// # Errors
    /// When the address is none, or cannot be bound.
    pub fn open(config: &Config, deps: PortDeps, alive: Lifeline) -> io::Result<Self> {
        let invalid = |fault| io::Error::new(io::ErrorKind::InvalidInput, fault);
        let listener = std::net::TcpListener::bind(config.metrics_address().map_err(invalid)?)?;
        let address = listener.local_addr()?;
        let figures = Arc::new(PortFigures::default());
        let data = Data::new(PortData { deps, figures: figures.clone() });
        let workers = Arc::new(alive.beside("metrics port"));
        let app = move || {
            // The worker makes one of these and drops it at its end.
            let app = App::new().app_data(data.clone()).app_data(workers.beside("metrics port"));
            app.configure(configure)
        };
        let server = HttpServer::new(app)
            .workers(1)
            .max_connections(MAX_CONNECTIONS)
            .client_request_timeout(READ_LIMIT)
            .disable_signals()
            .listen(listener)?
            .run();
        let handle = server.handle();
        let server = tokio::spawn(async move {
            let _alive = alive;
            server.await
        });
        Ok(Self { address, figures, handle, server })
    }

    /// Its number; the one that was found, if 0 was asked for.
    pub fn number(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn figures(&self) -> Arc<PortFigures> {
        self.figures.clone()
    }

    /// Closes it, with whoever is still connected.
    pub async fn close(self) {
        let Self { handle, server, .. } = self;
        handle.stop(false).await;
        // One that ended before has nothing left to say.
        let _ = server.await;
    }
}

fn configure(app: &mut ServiceConfig) {
    app.service(read("/metrics", metrics))
        .service(read("/telemetry", telemetry))
        .service(read("/health", health))
        .service(read("/peers", peers));
}

/// A path to read; HEAD is GET without the body, which the server leaves out.
fn read<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    Args: FromRequest + 'static,
    F::Output: Responder + 'static,
{
    web::resource(path).route(web::route().guard(Any(Get()).or(Head())).to(handler))
}

fn json(status: StatusCode) -> actix_web::HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response.insert_header((CONTENT_TYPE, "application/json"));
    response.insert_header((CACHE_CONTROL, "no-store"));
    response
}

/// `GET /metrics`: vitals. 200 where the node is not ready, too: the answer says so.
async fn metrics(data: Data<PortData>) -> HttpResponse {
    let (PortDeps { vitals, metrics, .. }, now) = (&data.deps, Timestamp::now());
    let ended = metrics.recent_requests.figures(now);
    let is_ready = vitals.is_ready();
    let vitals = NodeVitals::new(vitals.message(now), is_ready, ended, data.figures.busy());
    json(StatusCode::OK).json(vitals)
}

/// `GET /telemetry`: Prometheus.
async fn telemetry(data: Data<PortData>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8"))
        .body(data.deps.prometheus.render())
}

/// `GET /health`: the health message.
async fn health(data: Data<PortData>) -> HttpResponse {
    let message = data.deps.vitals.message(Timestamp::now());
    let status = match message.status {
        Status::Healthy | Status::Degraded => StatusCode::OK,
        Status::Critical => StatusCode::SERVICE_UNAVAILABLE,
    };
    json(status).body(message.to_json())
}

/// `GET /peers`: every node that some load balancer has told of.
async fn peers(data: Data<PortData>) -> HttpResponse {
    json(StatusCode::OK).json(data.figures.peers())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn peer(id: &str, address: &str, last_updated: u64) -> Peer {
        let peer = json!({"id": id, "address": address, "metrics_port": 1, "node_type": "backend",
                          "is_load_balancer": false, "last_updated": last_updated});
        serde_json::from_value(peer).expect("a peer")
    }

    #[test]
    fn peers_of_all_load_balancers_are_one_list_with_the_newest_of_each() {
        let figures = PortFigures::default();
        figures.set_peers(0, vec![peer("b", "old", 1), peer("a", "x", 1)]);
        figures.set_peers(1, vec![peer("b", "new", 2)]);
        assert_eq!(figures.peers(), [peer("a", "x", 1), peer("b", "new", 2)]);
        figures.set_peers(1, Vec::new());
        assert_eq!(figures.peers(), [peer("a", "x", 1), peer("b", "old", 1)]);
    }
}
