//! The water: a gradient from the surface down, a light above, soft beams, and marine snow.

use super::paint::{Canvas, Colour, blend, cosine, hsv, lerp, scale, smoothstep};
use crate::data::counter::Stream;

/// The colours that the animals fade into with distance.
pub struct Water {
    pub surface: Colour,
    pub depth: Colour,
    light_x: f32,
    lean: f32,
    glow: f32,
    beams: Vec<Beam>,
}

struct Beam {
    x: f32,
    slope: f32,
    width: f32,
    strength: f32,
}

impl Water {
    pub fn new(stream: &mut Stream) -> Self {
        // Open sea, coastal green, dusk, and night, by how often one would dive in them.
        let (hue, bright, dark) = match stream.index(10) {
            0..6 => (stream.range(0.53, 0.62), stream.range(0.45, 0.8), stream.range(0.1, 0.3)),
            6..8 => (stream.range(0.43, 0.52), stream.range(0.4, 0.65), stream.range(0.1, 0.25)),
            8 => (stream.range(0.64, 0.76), stream.range(0.3, 0.55), stream.range(0.08, 0.2)),
            _ => (stream.range(0.56, 0.68), stream.range(0.1, 0.22), stream.range(0.03, 0.08)),
        };
        let surface = hsv(hue, stream.range(0.45, 0.8), bright);
        let depth = hsv(hue + stream.range(0.0, 0.07), stream.range(0.75, 0.95), dark);
        let slope = stream.range(-0.6, 0.6);
        let beams = (0..[0, 0, 1, 2][stream.index(4)])
            .map(|_| Beam {
                x: stream.range(-0.1, 1.1),
                slope: slope + stream.range(-0.15, 0.15),
                width: stream.range(0.1, 0.2),
                strength: stream.range(0.08, 0.22),
            })
            .collect();
        Water {
            surface,
            depth,
            light_x: stream.range(0.1, 0.9),
            lean: stream.range(-0.35, 0.35),
            glow: stream.range(0.0, 0.35),
            beams,
        }
    }

    /// The colour at a place; `x` and `y` run over 0…1, `y` downwards.
    pub fn colour(&self, x: f32, y: f32) -> Colour {
        let down = smoothstep(-0.1, 1.15, y + self.lean * (x - 0.5));
        let mut colour = blend(self.surface, self.depth, down);
        let (dx, dy) = (x - self.light_x, y + 0.1);
        let near = 1.0 / (1.0 + 6.0 * (dx * dx + 0.7 * dy * dy));
        let mut light = self.glow * near * near;
        for beam in &self.beams {
            let across = (x - beam.x - beam.slope * y) / (beam.width * (1.0 + y));
            let edge = 1.0 / (1.0 + across * across);
            light += beam.strength * edge * edge * (1.0 - y) * (1.0 - 0.4 * y);
        }
        let bright = blend(scale(self.surface, 1.5), [0.9, 1.0, 0.95], 0.25);
        colour = blend(colour, bright, light.min(0.7));
        colour
    }

    pub fn paint(&self, canvas: &mut Canvas) {
        let step = 1.0 / canvas.size as f32;
        for row in 0..canvas.size {
            for column in 0..canvas.size {
                let (x, y) = ((column as f32 + 0.5) * step, (row as f32 + 0.5) * step);
                canvas.pixels[row * canvas.size + column] = self.colour(x, y);
            }
        }
    }

    /// Drifting flakes, from a dim haze of them far off to a few bright ones near the lens.
    pub fn snow(&self, canvas: &mut Canvas, stream: &mut Stream) {
        let unit = canvas.size as f32 / 32.0;
        let count = stream.index(5);
        // A larger picture shows more of them, and each somewhat larger.
        let count = (count as f32 * (unit * unit).clamp(0.25, 8.0)) as usize;
        let flake = unit.sqrt();
        let drift = cosine(stream.unit());
        for _ in 0..count {
            let near = stream.unit();
            let near = near * near;
            let at =
                [stream.unit() * canvas.size as f32, stream.unit() * canvas.size as f32 + drift];
            let radius = lerp(0.45, 0.95, near) * flake;
            let colour = blend(self.surface, [0.95, 0.97, 0.92], lerp(0.45, 0.9, near));
            canvas.disc(at, radius, colour, lerp(0.25, 0.75, near));
        }
    }
}
