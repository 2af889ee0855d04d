//! A thread that owns something which blocks, and runs jobs on it one after another.

use std::sync::mpsc;
use std::thread::JoinHandle;

use anabranch_core::{Error, Result};
use tokio::sync::oneshot;

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// Owns the thread: dropping it waits for the job that runs, then for the thread's end.
pub(crate) struct Worker<S> {
    jobs: Option<mpsc::Sender<Job<S>>>,
    thread: Option<JoinHandle<()>>,
}

impl<S: 'static> Worker<S> {
    /// Starts a thread and makes its state there, for that may block too.
    pub(crate) async fn start(make: impl FnOnce() -> Result<S> + Send + 'static) -> Result<Self> {
        let (jobs, inbox) = mpsc::channel::<Job<S>>();
        let (started, ready) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("anabranch-sqlite".to_owned())
            .spawn(move || {
                let mut state = match make() {
                    Ok(state) => state,
                    Err(error) => {
                        let _ = started.send(Err(error));
                        return;
                    }
                };
                if started.send(Ok(())).is_err() {
                    return;
                }
                while let Ok(job) = inbox.recv() {
                    job(&mut state);
                }
            })
            .map_err(|e| Error::transient("cannot start a thread for SQLite").because(e))?;
        let worker = Self { jobs: Some(jobs), thread: Some(thread) };
        ready.await.unwrap_or_else(|_| Err(ended()))?;
        Ok(worker)
    }

    /// Runs a job on the thread. If the future is dropped, the job is done all the same.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut S) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let _ = reply.send(job(state));
        });
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            return Err(ended());
        }
        answer.await.unwrap_or_else(|_| Err(ended()))
    }
}

impl<S> Drop for Worker<S> {
    fn drop(&mut self) {
        // The channel first: its end is what ends the thread.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn ended() -> Error {
    Error::indeterminate("the thread of the SQLite connection ended in the middle of a job")
}
