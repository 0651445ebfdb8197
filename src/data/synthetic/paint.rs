//! The brush: antialiased strokes and discs over a float picture, and the few functions that
//! shapes need. Only operations that IEEE 754 defines exactly (+, −, ×, ÷, √) are used, so that a
//! picture has the same bytes on every machine; the sine is a polynomial for that reason.

use image::RgbImage;

pub type Colour = [f32; 3];
pub type Point = [f32; 2];

pub fn lerp(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

pub fn blend(a: Colour, b: Colour, t: f32) -> Colour {
    [lerp(a[0], b[0], t), lerp(a[1], b[1], t), lerp(a[2], b[2], t)]
}

pub fn scale(a: Colour, factor: f32) -> Colour {
    [a[0] * factor, a[1] * factor, a[2] * factor]
}

/// 0 below `low`, 1 above `high`, a cubic between them. `low` may exceed `high`: then it falls.
pub fn smoothstep(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// sin(2π `turns`) within 6e-4, from Taylor's polynomial on a quarter turn.
pub fn sine(turns: f32) -> f32 {
    let t = turns - turns.floor();
    let folded = if t < 0.25 {
        t
    } else if t < 0.75 {
        0.5 - t
    } else {
        t - 1.0
    };
    let x = folded * std::f32::consts::TAU;
    let s = x * x;
    x * (1.0 - s * (1.0 / 6.0 - s * (1.0 / 120.0 - s * (1.0 / 5040.0))))
}

pub fn cosine(turns: f32) -> f32 {
    sine(turns + 0.25)
}

/// The arcsine in turns (−¼…¼) of a number in −1…1, within 1e-4 (Abramowitz and Stegun 4.4.45).
pub fn arcsine(x: f32) -> f32 {
    let a = x.abs().min(1.0);
    let poly = 1.570_728_8 + a * (-0.212_114_4 + a * (0.074_261 - a * 0.018_729_3));
    let angle = std::f32::consts::FRAC_PI_2 - (1.0 - a).sqrt() * poly;
    (if x < 0.0 { -angle } else { angle }) / std::f32::consts::TAU
}

/// Hue in turns, saturation and value in 0…1.
pub fn hsv(hue: f32, saturation: f32, value: f32) -> Colour {
    let channel = |offset: f32| {
        let k = (hue + offset) - (hue + offset).floor();
        let ramp = (2.0 - (k * 6.0 - 2.0).abs()).clamp(0.0, 1.0);
        value * (1.0 - saturation * ramp)
    };
    [channel(5.0 / 6.0), channel(0.5), channel(1.0 / 6.0)]
}

/// A square picture being painted; colours are display values in 0…1.
pub struct Canvas {
    pub size: usize,
    pub pixels: Vec<Colour>,
    /// Per pixel the opacity and colour of the stroke being drawn, empty between strokes.
    stroke: Vec<(f32, Colour)>,
}

/// A point of a stroke; lengths in pixels.
#[derive(Clone, Copy)]
pub struct Knot {
    pub at: Point,
    pub half_width: f32,
    pub colour: Colour,
    pub opacity: f32,
}

impl Canvas {
    pub fn new(size: usize) -> Self {
        let black = [0.0; 3];
        Canvas { size, pixels: vec![black; size * size], stroke: vec![(0.0, black); size * size] }
    }

    /// The pixel columns or rows whose centres may lie within `low..=high`.
    fn span(&self, low: f32, high: f32) -> std::ops::Range<usize> {
        let last = self.size as f32;
        (low - 0.5).floor().clamp(0.0, last) as usize..(high + 0.5).ceil().clamp(0.0, last) as usize
    }

    /// Calls `paint` for every pixel within `reach` of `centre`, with its centre's position; what
    /// it returns (colour, opacity) is laid over the pixel.
    pub fn around(
        &mut self,
        centre: Point,
        reach: f32,
        mut paint: impl FnMut(Point) -> (Colour, f32),
    ) {
        let columns = self.span(centre[0] - reach, centre[0] + reach);
        for row in self.span(centre[1] - reach, centre[1] + reach) {
            for column in columns.clone() {
                let (colour, opacity) = paint([column as f32 + 0.5, row as f32 + 0.5]);
                let pixel = &mut self.pixels[row * self.size + column];
                *pixel = blend(*pixel, colour, opacity.clamp(0.0, 1.0));
            }
        }
    }

    /// A soft-edged disc.
    pub fn disc(&mut self, centre: Point, radius: f32, colour: Colour, opacity: f32) {
        // A disc smaller than a pixel covers part of it.
        let thin = (radius / 0.5).min(1.0);
        let radius = radius.max(0.5);
        self.around(centre, radius + 1.0, |p| {
            let d = ((p[0] - centre[0]).powi(2) + (p[1] - centre[1]).powi(2)).sqrt();
            (colour, opacity * thin * thin * (radius + 0.5 - d).clamp(0.0, 1.0))
        });
    }

    /// Draws a curve through the knots. Where it meets itself the more opaque part wins, so that
    /// joints and crossings don't become darker than the rest.
    pub fn curve(&mut self, knots: &[Knot]) {
        let mut touched = Vec::with_capacity(knots.len() * 8);
        for pair in knots.windows(2) {
            self.segment(pair[0], pair[1], &mut touched);
        }
        for index in touched {
            let (opacity, colour) = std::mem::take(&mut self.stroke[index]);
            self.pixels[index] = blend(self.pixels[index], colour, opacity);
        }
    }

    fn segment(&mut self, a: Knot, b: Knot, touched: &mut Vec<usize>) {
        let reach = a.half_width.max(b.half_width).max(0.5) + 0.5;
        let along = [b.at[0] - a.at[0], b.at[1] - a.at[1]];
        let squared = along[0] * along[0] + along[1] * along[1];
        let columns = self.span(a.at[0].min(b.at[0]) - reach, a.at[0].max(b.at[0]) + reach);
        for row in self.span(a.at[1].min(b.at[1]) - reach, a.at[1].max(b.at[1]) + reach) {
            for column in columns.clone() {
                let p = [column as f32 + 0.5 - a.at[0], row as f32 + 0.5 - a.at[1]];
                let t = if squared > 0.0 {
                    ((p[0] * along[0] + p[1] * along[1]) / squared).clamp(0.0, 1.0)
                } else {
                    0.0
                };
                let (dx, dy) = (p[0] - along[0] * t, p[1] - along[1] * t);
                let half_width = lerp(a.half_width, b.half_width, t);
                let thin = (half_width / 0.5).min(1.0);
                let coverage =
                    (half_width.max(0.5) + 0.5 - (dx * dx + dy * dy).sqrt()).clamp(0.0, 1.0);
                let opacity = coverage * thin * lerp(a.opacity, b.opacity, t);
                let index = row * self.size + column;
                let held = &mut self.stroke[index];
                if opacity > held.0 {
                    if held.0 == 0.0 {
                        touched.push(index);
                    }
                    *held = (opacity, blend(a.colour, b.colour, t));
                }
            }
        }
    }

    pub fn finish(&self) -> RgbImage {
        let size = self.size as u32;
        RgbImage::from_fn(size, size, |x, y| {
            let pixel = self.pixels[y as usize * self.size + x as usize];
            image::Rgb(pixel.map(|c| (c.clamp(0.0, 1.0) * 255.0 + 0.5) as u8))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polynomials_are_close() {
        for i in -400..=400 {
            let x = i as f32 / 200.0;
            let error = (sine(x) - (x * std::f32::consts::TAU).sin()).abs();
            assert!(error <= 6e-4, "sine {x}: {error}");
            let s = (x / 2.0).clamp(-1.0, 1.0);
            let error = (arcsine(s) * std::f32::consts::TAU - s.asin()).abs();
            assert!(error <= 1e-4, "arcsine {s}: {error}");
        }
    }

    #[test]
    fn hues() {
        assert_eq!(hsv(0.0, 1.0, 1.0), [1.0, 0.0, 0.0]);
        let green = hsv(1.0 / 3.0, 1.0, 1.0);
        let blue = hsv(2.0 / 3.0, 1.0, 0.5);
        for (got, want) in [(green, [0.0, 1.0, 0.0]), (blue, [0.0, 0.0, 0.5])] {
            (0..3).for_each(|i| assert!((got[i] - want[i]).abs() < 1e-5, "{got:?} {want:?}"));
        }
    }
}
