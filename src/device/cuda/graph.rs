//! A program as one CUDA graph: the driver checks and packs the launches once, and a run hands
//! over the whole list at a time. On a GPU that waits for launches this is what a step costs least.

use super::refused;
use super::session::Context;
use crate::error::Result;
use cudarc::driver::{result, sys};
use std::sync::Arc;

/// The stream that everything of a session runs on. It waits for the copies, which go through the
/// legacy default stream, and they for it.
pub(super) struct Stream {
    context: Arc<Context>,
    handle: sys::CUstream,
}

impl Stream {
    /// # Errors
    /// When the driver fails.
    pub(super) fn new(context: &Arc<Context>) -> Result<Stream> {
        context.bind()?;
        let handle = result::stream::create(result::stream::StreamKind::Default)
            .map_err(|e| refused("open a stream", e))?;
        Ok(Stream { context: context.clone(), handle })
    }

    pub(super) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Records what `work` puts into the stream, which runs nothing of it.
    ///
    /// # Errors
    /// Those of `work`, and when the driver refuses the graph.
    pub(super) fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.context.bind()?;
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is alive and records nothing: this is the only place that begins, and
        // it ends below.
        unsafe { result::stream::begin_capture(self.handle, mode) }
            .map_err(|e| refused("begin to record a program", e))?;
        let worked = work();
        // SAFETY: begun above. Ended in front of any return, so that the stream can be used again.
        let graph = unsafe { result::stream::end_capture(self.handle) };
        worked?;
        let graph = graph.map_err(|e| refused("record a program", e))?;
        // SAFETY: the graph was recorded above; the executable form is a copy.
        let exec = unsafe {
            let exec = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            let _ = result::graph::destroy(graph);
            exec
        };
        let exec = exec.map_err(|e| refused("make a program ready", e))?;
        Ok(Graph { context: self.context.clone(), exec })
    }

    /// Runs a graph, and returns when it has ended.
    ///
    /// # Errors
    /// When the driver or a kernel in it fails.
    pub(super) fn run(&self, graph: &Graph) -> Result<()> {
        self.context.bind()?;
        // SAFETY: graph and stream are alive, and so is, as long as the session, all memory that the
        // graph's launches name.
        unsafe { result::graph::launch(graph.exec, self.handle) }
            .map_err(|e| refused("start a program", e))?;
        // SAFETY: the stream is alive.
        unsafe { result::stream::synchronize(self.handle) }
            .map_err(|e| refused("finish a program", e))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: opened in `new`; every run has ended.
            let _ = unsafe { result::stream::destroy(self.handle) };
        }
    }
}

/// A recorded program.
pub(super) struct Graph {
    context: Arc<Context>,
    exec: sys::CUgraphExec,
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made in `record`; every run has ended.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}
