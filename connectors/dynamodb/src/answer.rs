//! The bytes of an answer, before the client makes objects of them.
//!
//! The client's objects, a map for each item, cost more than the rest of a page's way to the sink. So
//! the two calls that bring the data, `GetRecords` and `Scan`, are sent by the client, which signs
//! them and tells what was refused, and their answers are read by [`decode::wire`](crate::decode::wire).

use std::cell::RefCell;
use std::future::Future;

use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeDeserializationInterceptorContextMut;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::{ConnectorError, SdkError};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::byte_stream::ByteStream;
use bytes::Bytes;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;

use crate::client::CALL;

tokio::task_local! {
    /// Of the call that [`body`] waits for. Here and not in an interceptor of each call: that would have
    /// the client's configuration put together anew for every one.
    static TAKEN: RefCell<Option<SdkBody>>;
}

/// The bytes of an answer, or why there is none.
pub(crate) type Answer<E> = Result<Bytes, SdkError<E, HttpResponse>>;

/// A call under way. It goes on while nobody waits for it, and ends with this.
#[derive(Debug)]
pub(crate) struct Call<E>(JoinHandle<Answer<E>>);

impl<E: Send + 'static> Call<E> {
    pub(crate) fn start(call: impl Future<Output = Answer<E>> + Send + 'static) -> Self {
        Self(tokio::spawn(call))
    }

    /// Waits for its answer. Cancel safe.
    pub(crate) async fn answer(&mut self) -> Result<Answer<E>, JoinError> {
        (&mut self.0).await
    }
}

impl<E> Drop for Call<E> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sends a call of a client that has [`Bodies`], and gives its answer's bytes in place of its objects.
pub(crate) async fn body<T, E>(sent: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>) -> Answer<E> {
    let call = async { sent.await.map(|_| TAKEN.with(RefCell::take)) };
    let Some(body) = TAKEN.scope(RefCell::default(), call).await? else {
        return Err(SdkError::dispatch_failure(ConnectorError::io("the answer has no body".into())));
    };
    match timeout(CALL, ByteStream::new(body).collect()).await {
        Ok(Ok(all)) => Ok(all.into_bytes()),
        Ok(Err(e)) => Err(SdkError::dispatch_failure(ConnectorError::io(e.into()))),
        Err(e) => Err(SdkError::timeout_error(e)),
    }
}

/// Takes the bodies of good answers out of the client's hands, where [`body`] waits for one. The client
/// reads an empty object instead.
#[derive(Debug)]
pub(crate) struct Bodies;

impl Intercept for Bodies {
    fn name(&self) -> &'static str {
        "Bodies"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let response = context.response_mut();
        if response.status().is_success() {
            // An error: nobody waits for it.
            let _ = TAKEN.try_with(|taken| {
                taken.replace(Some(std::mem::replace(response.body_mut(), SdkBody::from("{}"))));
            });
        }
        Ok(())
    }
}
