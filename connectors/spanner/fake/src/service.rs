//! The service `google.spanner.v1.Spanner`, by the paths of its methods.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use googleapis_tonic_google_spanner_v1::google::spanner::v1 as wire;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use crate::calls;
use crate::database::Database;

/// What every method of a service returns.
type Reply<T> = Pin<Box<dyn Future<Output = Result<T, Status>> + Send>>;
pub(crate) type Rows = ReceiverStream<Result<wire::PartialResultSet, Status>>;

/// The service over one database.
#[derive(Debug, Clone)]
pub(crate) struct SpannerService(pub(crate) Arc<Database>);

impl NamedService for SpannerService {
    const NAME: &'static str = "google.spanner.v1.Spanner";
}

impl Service<http::Request<Body>> for SpannerService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let database = Arc::clone(&self.0);
        let method = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        Box::pin(async move {
            let response = match method.as_str() {
                "CreateSession" => unary(database, request, calls::create_session).await,
                "BatchCreateSessions" => unary(database, request, calls::batch_create_sessions).await,
                "GetSession" => unary(database, request, calls::get_session).await,
                "DeleteSession" => unary(database, request, calls::delete_session).await,
                "BeginTransaction" => unary(database, request, calls::begin_transaction).await,
                "Commit" => unary(database, request, calls::commit).await,
                "Rollback" => unary(database, request, calls::rollback).await,
                "ExecuteSql" => unary(database, request, calls::execute_sql).await,
                "ExecuteBatchDml" => unary(database, request, calls::execute_batch_dml).await,
                "PartitionQuery" => unary(database, request, calls::partition_query).await,
                "ExecuteStreamingSql" => {
                    let mut grpc = Grpc::new(ProstCodec::<wire::PartialResultSet, wire::ExecuteSqlRequest>::default());
                    grpc.server_streaming(Streaming(database), request).await
                }
                _ => Status::unimplemented(format!("the fake has no {method}")).into_http(),
            };
            Ok(response)
        })
    }
}

async fn unary<Q, A>(
    database: Arc<Database>,
    request: http::Request<Body>,
    call: fn(&Database, Q) -> Result<A, Status>,
) -> http::Response<Body>
where
    Q: Message + Default + 'static,
    A: Message + Default + 'static,
{
    Grpc::new(ProstCodec::<A, Q>::default()).unary(Unary { database, call }, request).await
}

/// A method with one answer.
struct Unary<Q, A> {
    database: Arc<Database>,
    call: fn(&Database, Q) -> Result<A, Status>,
}

impl<Q: Send + 'static, A: Send + 'static> Service<Request<Q>> for Unary<Q, A> {
    type Response = Response<A>;
    type Error = Status;
    type Future = Reply<Response<A>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let result = (self.call)(&self.database, request.into_inner()).map(Response::new);
        Box::pin(async move { result })
    }
}

/// The method whose answer is a stream.
struct Streaming(Arc<Database>);

impl Service<Request<wire::ExecuteSqlRequest>> for Streaming {
    type Response = Response<Rows>;
    type Error = Status;
    type Future = Reply<Response<Rows>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<wire::ExecuteSqlRequest>) -> Self::Future {
        let database = Arc::clone(&self.0);
        Box::pin(async move {
            // A reader that is slow holds the server back, as HTTP/2 does.
            let (out, rows) = mpsc::channel(16);
            calls::stream(&database, request.into_inner(), out)?;
            Ok(Response::new(ReceiverStream::new(rows)))
        })
    }
}
