//! Draws a model. Every word on the screen is meant for somebody who sees it for the first time.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style, Stylize as _},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Sparkline, Table},
};

use super::model::{ColdStartRow, Model, PodRow, RouteRow};
use crate::{
    cold_start::{Phases, millis},
    kubelet::Phase,
    state::RouteState,
};

/// One colour a part of a cold start, in the order of `Phases::parts`.
const PARTS: [Color; 5] = [Color::Magenta, Color::Cyan, Color::Blue, Color::Yellow, Color::Green];
/// Their names where there is little room.
const SHORT_PARTS: [&str; 5] = ["signal", "decide", "start", "ready", "forward"];
/// What the figures of a cold start need; the bar gets the rest of the line.
const FIGURES: u16 = 106;
const MAX_BAR: u16 = 40;

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let problems = u16::try_from(model.problems.len().min(3)).unwrap_or(3);
    let routes = u16::try_from(model.routes.len().clamp(1, 8)).unwrap_or(8);
    let [header, table, middle, cold, log, wrong, footer] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(routes + 3),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Min(4),
        Constraint::Length(if problems == 0 { 0 } else { problems + 2 }),
        Constraint::Length(4),
    ])
    .areas(frame.area());
    let graph = if is_narrow(frame.area()) { Constraint::Length(0) } else { Constraint::Min(20) };
    let [pods, graph] = Layout::horizontal([Constraint::Max(82), graph]).areas(middle);
    draw_header(frame, header, model);
    draw_routes(frame, table, model);
    draw_pods(frame, pods, &model.pods);
    draw_graph(frame, graph, model);
    draw_cold_starts(frame, cold, &model.cold_starts);
    draw_log(frame, log, &model.log);
    if problems > 0 {
        let lines: Vec<Line<'_>> = model.problems.iter().map(|problem| Line::from(problem.as_str()).red()).collect();
        frame.render_widget(Paragraph::new(lines).block(titled("What is wrong")), wrong);
    }
    draw_footer(frame, footer, model);
}

/// Where long names would push numbers off the screen.
fn is_narrow(area: Rect) -> bool {
    area.width < 110
}

fn titled(title: &str) -> Block<'_> {
    Block::bordered().border_style(Style::new().dark_gray()).title(Span::from(format!(" {title} ")).bold().white())
}

fn draw_header(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let (level, reason) = &model.dataplane;
    let meaning = match level.as_str() {
        "self" => "eBPF counts the interceptor's connections".to_owned(),
        _ => reason.clone(),
    };
    let mut processes = vec![Span::from(" ")];
    for (name, health, good) in &model.processes {
        processes.push(Span::from(format!("{name} ")));
        let health = Span::from(format!("{health}   "));
        processes.push(if *good { health.green() } else { health.red().bold() });
    }
    processes.push(Span::from("KEDA, the HPA and the kubelet are played by this process").dark_gray());
    let first = Line::from(vec![
        Span::from(" Rouse ").bold().black().on_yellow(),
        Span::from(format!(" requests go to http://127.0.0.1:{}   data plane: ", model.proxy)),
        Span::from(level.as_str()).bold(),
        Span::from(format!(", {meaning}")).dark_gray(),
    ]);
    frame.render_widget(Paragraph::new(vec![first, Line::from(processes)]), area);
}

fn draw_routes(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let narrow = is_narrow(area);
    let (replicas, connections) =
        if narrow { ("replicas", "conns") } else { ("ready/asked/max", "connections: open/ever") };
    let header = ["  route", "state", "in flight", "held", "req/s", replicas, connections];
    let rows = model.routes.iter().enumerate().map(|(index, row)| route_row(row, index == model.chosen));
    let widths = [
        Constraint::Max(36),
        Constraint::Length(9),
        Constraint::Length(9),
        Constraint::Length(4),
        Constraint::Length(6),
        Constraint::Length(if narrow { 8 } else { 16 }),
        Constraint::Length(if narrow { 7 } else { 24 }),
    ];
    let title = "Routes: cold = no replica runs, holding = requests wait for one, warm = replicas answer";
    let table = Table::new(rows, widths).header(Row::new(header).style(Style::new().dark_gray())).block(titled(title));
    frame.render_widget(table, area);
}

fn route_row(row: &RouteRow, chosen: bool) -> Row<'_> {
    let (state, style) = match row.state {
        Some(RouteState::Cold) => ("○ cold", Style::new().blue()),
        Some(RouteState::Holding) => ("◐ holding", Style::new().yellow().bold()),
        Some(RouteState::Warm) => ("● warm", Style::new().green()),
        Some(RouteState::Unknown) => ("? other", Style::new().dark_gray()),
        None => ("unknown", Style::new().dark_gray()),
    };
    let kernel = row.kernel.map_or_else(|| "–".to_owned(), |(open, ever)| format!("{open}/{ever}"));
    let (ready, asked, max) = row.replicas;
    let style_of_row = if chosen { Style::new().add_modifier(Modifier::BOLD) } else { Style::new() };
    Row::new([
        Cell::from(format!("{} {}", if chosen { "▶" } else { " " }, row.name)),
        Cell::from(state).style(style),
        Cell::from(row.in_flight.to_string()),
        Cell::from(row.held.to_string()),
        Cell::from(format!("{:.1}", row.rate)),
        Cell::from(format!("{ready}/{asked}/{max}")),
        Cell::from(kernel),
    ])
    .style(style_of_row)
}

fn draw_pods(frame: &mut Frame<'_>, area: Rect, pods: &[PodRow]) {
    let block = titled("Replicas: local processes, each on its own loopback address");
    if pods.is_empty() {
        let text = Line::from(" none: nothing runs, nothing is paid for").dark_gray();
        frame.render_widget(Paragraph::new(text).block(block), area);
        return;
    }
    let row = |pod: &PodRow| {
        let (phase, style) = match &pod.phase {
            Phase::Starting => ("starting".to_owned(), Style::new().yellow()),
            Phase::Ready => ("ready".to_owned(), Style::new().green()),
            Phase::Crashed(_) => ("crashed".to_owned(), Style::new().red()),
            Phase::Ending => ("ending".to_owned(), Style::new().dark_gray()),
        };
        let restarts = if pod.restarts == 0 { String::new() } else { format!("{}× restarted", pod.restarts) };
        let pid = pod.pid.map_or_else(String::new, |pid| format!("process {pid}"));
        Row::new([
            Cell::from(format!(" {}", pod.name)),
            Cell::from(pod.address.clone()),
            Cell::from(phase).style(style),
            Cell::from(pid),
            Cell::from(restarts),
        ])
    };
    let widths = [
        Constraint::Min(14),
        Constraint::Length(20),
        Constraint::Length(10),
        Constraint::Length(15),
        Constraint::Length(12),
    ];
    frame.render_widget(Table::new(pods.iter().map(row), widths).block(block), area);
}

fn draw_graph(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let width = usize::from(area.width.saturating_sub(2));
    let data = &model.history[model.history.len().saturating_sub(width)..];
    let title = format!("Requests per second, at most {}", data.iter().max().copied().unwrap_or(0));
    let graph = Sparkline::default().data(data).style(Style::new().green()).block(titled(&title));
    frame.render_widget(graph, area);
}

fn draw_cold_starts(frame: &mut Frame<'_>, area: Rect, rows: &[ColdStartRow]) {
    let block = titled("Cold starts: where did the time go?");
    if rows.is_empty() {
        let text = Line::from(" none yet: send a request while a route is cold").dark_gray();
        frame.render_widget(Paragraph::new(text).block(block), area);
        return;
    }
    let narrow = is_narrow(area);
    let bar = if narrow { 0 } else { area.width.saturating_sub(FIGURES).min(MAX_BAR) };
    let names = if narrow { SHORT_PARTS } else { Phases::default().parts().map(|(name, _)| name) };
    let heads = names.into_iter().zip(PARTS).map(|(name, colour)| Cell::from(name).style(Style::new().fg(colour)));
    let header = ["      at", "route", "held", "total", ""].map(Cell::from).into_iter().chain(heads);
    let fixed = [(9, false), (24, true), (4, false), (7, false), (bar, false)];
    let column = |(width, gives_way)| if gives_way { Constraint::Max(width) } else { Constraint::Length(width) };
    let figures = names.map(|name| Constraint::Length(u16::try_from(name.len()).unwrap_or(16).max(7)));
    let widths: Vec<Constraint> = fixed.into_iter().map(column).chain(figures).collect();
    let rows = rows.iter().map(|row| cold_start_row(row, bar));
    let table = Table::new(rows, widths).header(Row::new(header).style(Style::new().dark_gray())).block(block);
    frame.render_widget(table, area);
}

fn cold_start_row(row: &ColdStartRow, bar: u16) -> Row<'_> {
    let total = row.phases.total();
    let (mut done, mut drawn, mut spans) = (0, 0, Vec::new());
    for ((_, micros), colour) in row.phases.parts().into_iter().zip(PARTS) {
        done += micros;
        let until = (done * u64::from(bar)).checked_div(total).unwrap_or(0);
        spans.push(Span::from("█".repeat(usize::try_from(until - drawn).unwrap_or(0))).fg(colour));
        drawn = until;
    }
    let figures = row.phases.parts().map(|(_, micros)| Cell::from(millis(micros)));
    let head = [
        Cell::from(format!("{:>7.1} s", row.at)),
        Cell::from(row.route.as_str()),
        Cell::from(row.requests.to_string()),
        Cell::from(millis(total)).style(Style::new().bold()),
        Cell::from(Line::from(spans)),
    ];
    Row::new(head.into_iter().chain(figures))
}

fn draw_log(frame: &mut Frame<'_>, area: Rect, log: &[(f64, String, bool)]) {
    let height = usize::from(area.height.saturating_sub(2));
    let lines = log[log.len().saturating_sub(height)..].iter().map(|(at, text, bad)| {
        let text = Span::from(text.as_str());
        Line::from(vec![Span::from(format!("{at:>7.1} s  ")).dark_gray(), if *bad { text.red() } else { text }])
    });
    frame.render_widget(Paragraph::new(lines.collect::<Vec<_>>()).block(titled("What happened")), area);
}

fn draw_footer(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let load = match model.load {
        Some((concurrency, answered, failed)) => {
            Span::from(format!("load is on: {concurrency} at once, {answered} answered, {failed} failed")).yellow()
        }
        None => Span::from(model.reply.as_str()).green(),
    };
    let mut edit =
        vec![Span::from(" Edit these, it takes effect at once:  ").dark_gray(), Span::from(model.manifests.as_str())];
    if !is_narrow(area) {
        edit.extend([Span::from("   logs:  ").dark_gray(), Span::from(model.logs.as_str())]);
    }
    let lines = vec![
        Line::from(vec![
            Span::from(" In another terminal:  ").dark_gray(),
            Span::from(model.curl.as_str()).cyan().bold(),
        ]),
        Line::from(edit),
        Line::from(vec![
            key("r", "one request"),
            key("l", "load on/off"),
            key("+ -", "more, less"),
            key("↑ ↓", "choose"),
            key("q", "quit"),
        ]),
        Line::from(vec![Span::from(" "), load]),
    ];
    frame.render_widget(Paragraph::new(lines), area);
}

fn key(key: &str, meaning: &str) -> Span<'static> {
    Span::from(format!(" [{key}] {meaning} ")).bold()
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;

    fn screen(model: &Model) -> String {
        let mut terminal = Terminal::new(TestBackend::new(130, 40)).unwrap();
        terminal.draw(|frame| draw(frame, model)).unwrap();
        terminal.backend().to_string()
    }

    fn model() -> Model {
        let row = RouteRow {
            name: "default/hello".into(),
            kind: "InterceptorRoute",
            state: Some(RouteState::Holding),
            in_flight: 3,
            held: 2,
            rate: 4.25,
            replicas: (0, 1, 5),
            kernel: Some((1, 7)),
        };
        let phases = Phases { signal: 1500, decision: 300, start: 2000, ready: 1_000_000, forward: 900 };
        Model {
            proxy: 4711,
            dataplane: ("self".into(), String::new()),
            processes: vec![("interceptor", "up".into(), true), ("scaler", "was ended by SIGKILL".into(), false)],
            routes: vec![row],
            cold_starts: vec![ColdStartRow { at: 3.2, route: "default/hello".into(), phases, requests: 1 }],
            log: vec![(3.2, "default/hello: KEDA 0 → 1 replicas".into(), false)],
            curl: "curl -i http://127.0.0.1:4711/".into(),
            history: vec![1, 2, 3],
            ..Model::default()
        }
    }

    #[test]
    fn the_screen_names_route_state_and_command() {
        let screen = screen(&model());
        for part in [
            "requests go to http://127.0.0.1:4711",
            "data plane: self",
            "scaler was ended by SIGKILL",
            "▶ default/hello",
            "◐ holding",
            "0/1/5",
            "1/7",
            "4.2",
            "none: nothing runs",
            "signal to scaler",
            "1.5 ms",
            "1.00 s",
            "KEDA 0 → 1 replicas",
            "curl -i http://127.0.0.1:4711/",
            "[q] quit",
        ] {
            assert!(screen.contains(part), "{part:?} is not on\n{screen}");
        }
    }

    #[test]
    fn an_empty_model_and_a_tiny_terminal_draw_without_panic() {
        for (width, height) in [(1, 1), (20, 5), (300, 100)] {
            for model in [Model::default(), model()] {
                let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
                terminal.draw(|frame| draw(frame, &model)).unwrap();
            }
        }
    }
}
