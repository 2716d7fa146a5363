//! Tab-separated text, aligned: the columns of neighbouring lines share a width, as far as they share tabs.

/// Spaces between columns.
const GAP: usize = 2;

/// Lines under construction. Cells end in a tab; the last cell of a line does not count for any width.
#[derive(Debug, Default)]
pub(super) struct Lines {
    text: String,
}

impl Lines {
    /// Adds a line, indented by two spaces per level.
    pub fn line(&mut self, level: usize, text: impl AsRef<str>) {
        (0..level).for_each(|_| self.text.push_str("  "));
        self.text.push_str(text.as_ref());
        self.text.push('\n');
    }

    /// Adds `name:` and a value.
    pub fn pair(&mut self, level: usize, name: &str, value: impl AsRef<str>) {
        self.line(level, format!("{name}:\t{}", value.as_ref()));
    }

    /// Adds `name:` and values below one another; `<none>` without any.
    pub fn pairs(&mut self, level: usize, name: &str, values: &[String]) {
        match values.split_first() {
            None => self.pair(level, name, "<none>"),
            Some((first, rest)) => {
                self.pair(level, name, first);
                rest.iter().for_each(|value| self.line(level, format!("\t{value}")));
            }
        }
    }

    /// The aligned text.
    pub fn finish(self) -> String {
        let lines: Vec<Vec<&str>> = self.text.lines().map(|line| line.split('\t').collect()).collect();
        let mut text = String::with_capacity(self.text.len() * 2);
        layout(&lines, &mut Vec::new(), &mut text);
        text
    }
}

/// Lays out lines that share the widths of their first columns. A run of lines that has one more column shares
/// that one's width too. Source: the documentation of Go's text/tabwriter.
fn layout(lines: &[Vec<&str>], widths: &mut Vec<usize>, text: &mut String) {
    let column = widths.len();
    let has = |line: &Vec<&str>| line.len() > column + 1;
    let mut rest = lines;
    while let Some(first) = rest.first() {
        let run = rest.iter().take_while(|line| has(line) == has(first)).count();
        let (block, after) = rest.split_at(run);
        rest = after;
        if has(first) {
            let width = block.iter().map(|line| line[column].chars().count()).max().unwrap_or(0) + GAP;
            widths.push(width);
            layout(block, widths, text);
            widths.pop();
            continue;
        }
        for line in block {
            let mut padded = String::new();
            for (index, cell) in line.iter().enumerate() {
                padded.push_str(cell);
                if let (Some(width), true) = (widths.get(index), index + 1 < line.len()) {
                    (cell.chars().count()..*width).for_each(|_| padded.push(' '));
                }
            }
            text.push_str(padded.trim_end());
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks() {
        let mut lines = Lines::default();
        lines.pair(0, "Name", "a");
        lines.pairs(0, "Annotations", &["x".into(), "y".into()]);
        lines.line(0, "Containers:");
        lines.pair(1, "Long Name Here", "b");
        lines.line(1, "T\tS\tM");
        assert_eq!(
            lines.finish(),
            "Name:         a\nAnnotations:  x\n              y\nContainers:\n  Long Name Here:  b\n  T                S  M\n"
        );
    }
}
