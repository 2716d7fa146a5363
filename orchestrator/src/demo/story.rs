//! How the demo is told: numbered chapters, facts beneath them, a spinner while something is awaited.

use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// The story so far.
pub(super) struct Story {
    begun: Instant,
    chapter: u32,
    spinner: ProgressBar,
}

impl Story {
    pub(super) fn begin() -> Story {
        // Draws to stderr, and only on a terminal: a log gets the facts alone.
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("   {spinner} {msg} ({elapsed})") {
            spinner.set_style(style);
        }
        Story { begun: Instant::now(), chapter: 0, spinner }
    }

    /// Begins the next chapter.
    pub(super) fn chapter(&mut self, title: &str) {
        let line = self.title(title);
        self.line(&line);
    }

    /// The next chapter's first line, for somebody else to print.
    pub(super) fn title(&mut self, title: &str) -> String {
        self.chapter += 1;
        let at = self.begun.elapsed().as_secs_f64();
        format!("\n{}. {title}   [{at:.1} s]", self.chapter)
    }

    /// Leaves the terminal to somebody else until something is awaited again.
    pub(super) fn hide(&self) {
        self.spinner.disable_steady_tick();
        self.spinner.set_message("");
        self.spinner.reset();
    }

    /// States a fact.
    pub(super) fn fact(&self, text: impl AsRef<str>) {
        self.line(&format!("   {}", text.as_ref()));
    }

    /// States how long something took.
    pub(super) fn timed(&self, what: &str, took: Duration) {
        self.fact(format!("{what}: {:.1} ms", took.as_secs_f64() * 1e3));
    }

    /// Shows that something is awaited.
    pub(super) fn awaiting(&self, what: &str) {
        self.spinner.set_message(what.to_owned());
        self.spinner.enable_steady_tick(Duration::from_millis(100));
        self.spinner.tick();
    }

    /// Ends the telling.
    pub(super) fn end(self) -> Duration {
        self.spinner.finish_and_clear();
        self.begun.elapsed()
    }

    fn line(&self, text: &str) {
        self.spinner.suspend(|| println!("{text}"));
    }
}
