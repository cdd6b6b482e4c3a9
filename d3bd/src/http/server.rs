//! Connections: accepted, bounded in number and patience, and drained at the end.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::call::Shared;
use super::io::Impatient;
use super::service::Layer;
use crate::handle::Handle;

/// Connections at a time; further ones are told to come back.
const CONNECTIONS_MAX: usize = 4_096;
/// Connections at a time that are being told so; what goes beyond is closed without a word.
const REFUSALS_MAX: usize = 64;
/// KiB that all JSON bodies together may take in memory.
const BODY_MEMORY_KIB: usize = 256 << 10;
/// KiB that all results together may take that are gathered before they are sent, until their clients have taken them.
const RESULT_MEMORY_KIB: usize = 1 << 20;
/// From the opening of a connection, or the end of a response, to the end of the next request's headers.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// How long what a client still sends after its answer is read and dropped. Closed at once, the connection would be
/// reset, and the client might never see the answer.
const LINGER: Duration = Duration::from_secs(2);
/// The same when the server is to end, for idle connections whose clients take no notice would hold it up.
const LINGER_DRAINING: Duration = Duration::from_millis(200);
/// After an error of `accept` that is not one connection's own, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often that is logged.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of an uploaded file.
    pub upload_max: u64,
    /// Host names that are this server's, besides addresses and localhost.
    pub hosts: Vec<String>,
}

/// Serves until `drain` becomes true (or its sender is gone), then until the requests under way have their answers.
/// Dropped before, it closes every connection.
pub async fn serve(
    listener: TcpListener,
    unix: Option<UnixListener>,
    handle: Handle,
    options: Options,
    mut drain: watch::Receiver<bool>,
) {
    let body_memory = Arc::new(Semaphore::new(BODY_MEMORY_KIB));
    let result_memory = Arc::new(Semaphore::new(RESULT_MEMORY_KIB));
    let upload_max = options.upload_max;
    let shared = Shared { handle, upload_max, drain: drain.clone(), body_memory, result_memory };
    let mut server = Server {
        layer: Arc::new(Layer::new(shared, options.hosts)),
        slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        refusals: Arc::new(Semaphore::new(REFUSALS_MAX)),
        drain: drain.clone(),
        connections: JoinSet::new(),
    };
    let draining = async move {
        // A sender that is gone means the same as the signal.
        let _ = drain.wait_for(|draining| *draining).await;
    };
    let mut draining = pin!(draining);
    let mut complaints = Complaints { last: None };
    loop {
        tokio::select! {
            () = &mut draining => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    prepare(&stream);
                    server.connect(stream, false);
                }
                Err(error) => complaints.pause_after(&error).await,
            },
            accepted = accept_unix(unix.as_ref()) => match accepted {
                Ok(stream) => server.connect(stream, true),
                Err(error) => complaints.pause_after(&error).await,
            },
            // Ended tasks are taken out as they end.
            Some(_) = server.connections.join_next() => {}
        }
    }
    drop((listener, unix));
    while server.connections.join_next().await.is_some() {}
}

async fn accept_unix(listener: Option<&UnixListener>) -> std::io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// When it was last complained that connections cannot be accepted.
struct Complaints {
    last: Option<Instant>,
}

impl Complaints {
    async fn pause_after(&mut self, error: &std::io::Error) {
        use std::io::ErrorKind;
        if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted) {
            return;
        }
        if self.last.is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL) {
            self.last = Some(Instant::now());
            tracing::warn!(%error, "cannot accept connections");
        }
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// Answers go out at once, and a client that vanished without a word is noticed in time.
fn prepare(stream: &tokio::net::TcpStream) {
    use rustix::net::sockopt;
    let set = stream.set_nodelay(true).and_then(|()| {
        sockopt::set_socket_keepalive(stream, true)?;
        sockopt::set_tcp_keepidle(stream, Duration::from_secs(60))?;
        sockopt::set_tcp_keepintvl(stream, Duration::from_secs(10))?;
        sockopt::set_tcp_keepcnt(stream, 3)?;
        Ok(())
    });
    if let Err(error) = set {
        // The client is gone already; reading from it will tell.
        tracing::debug!(%error, "cannot set the options of a connection");
    }
}

struct Server {
    layer: Arc<Layer>,
    slots: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    drain: watch::Receiver<bool>,
    connections: JoinSet<()>,
}

impl Server {
    fn connect<T>(&mut self, stream: T, local: bool)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        if let Ok(permit) = Arc::clone(&self.slots).try_acquire_owned() {
            let (layer, drain) = (Arc::clone(&self.layer), self.drain.clone());
            self.connections.spawn(async move {
                serve_connection(stream, layer, local, drain).await;
                drop(permit);
            });
        } else if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            self.connections.spawn(refuse(stream, permit));
        }
    }
}

async fn serve_connection<T>(stream: T, layer: Arc<Layer>, local: bool, mut drain: watch::Receiver<bool>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let layer = Arc::clone(&layer);
        // Boxed, because connections that can be taken apart need futures that can be moved.
        let answer: Pin<Box<dyn Future<Output = Result<_, Infallible>> + Send>> =
            Box::pin(async move { Ok(layer.answer(request, local).await) });
        answer
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEADER_BYTES_MAX)
        .half_close(true)
        .serve_connection(TokioIo::new(Impatient::new(stream)), service);
    let mut draining = pin!(async move {
        let _ = drain.wait_for(|draining| *draining).await;
    });
    let (served, patience) = tokio::select! {
        served = poll_fn(|cx| connection.poll_without_shutdown(cx)) => (served, LINGER),
        () = &mut draining => {
            Pin::new(&mut connection).graceful_shutdown();
            (poll_fn(|cx| connection.poll_without_shutdown(cx)).await, LINGER_DRAINING)
        }
    };
    match served {
        Ok(()) => linger(connection.into_parts().io.into_inner(), patience).await,
        // Clients that send nothing, nonsense, or go away: their own affair.
        Err(error) => tracing::debug!(%error, "a connection ended early"),
    }
}

/// Closes a connection so that its client gets to read the last answer.
async fn linger<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, patience: Duration) {
    let drained = async {
        stream.shutdown().await?;
        let mut dropped = vec![0; 16 << 10];
        while stream.read(&mut dropped).await? > 0 {}
        std::io::Result::Ok(())
    };
    // An error here means that the client has closed already.
    let _ = tokio::time::timeout(patience, drained).await;
}

/// Tells a client that there are too many connections.
async fn refuse<T: AsyncRead + AsyncWrite + Unpin>(mut stream: T, permit: OwnedSemaphorePermit) {
    let problem = d3b::Problem::new(d3b::Code::Overloaded, format!("{CONNECTIONS_MAX} connections are open"));
    let body = problem.to_json().to_string();
    let response = format!(
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    let told = tokio::time::timeout(LINGER, stream.write_all(response.as_bytes())).await;
    if matches!(told, Ok(Ok(()))) {
        linger(stream, LINGER).await;
    }
    drop(permit);
}
