//! One lion's mane jellyfish (*Cyanea capillata*): a lobed bell, frilled oral arms, and clusters
//! of fine tentacles that trail behind it.
//!
//! Everything is described in the animal's own frame, in units of the bell's radius: `u` across,
//! `v` towards the apex, the margin of the bell at `v` = 0.

use super::paint::{
    Canvas, Colour, Knot, Point, arcsine, blend, cosine, hsv, lerp, scale, sine, smoothstep,
};
use crate::data::counter::Stream;

/// What distinguishes one animal from another.
pub struct Jellyfish {
    /// The middle of the margin, pixels.
    centre: Point,
    /// Towards the apex, a unit vector in the picture (y downwards).
    axis: Point,
    /// Radius of the bell, pixels.
    radius: f32,
    /// Height of the bell: low when it opens, high when it contracts.
    height: f32,
    /// 0: the top of the bell is round; 0.5: flattened.
    flatness: f32,
    /// Half-height of the margin's ellipse: how far the animal leans to or away from the viewer.
    tilt: f32,
    /// Whether we look into the bell from below.
    from_below: bool,
    lobes: f32,
    turn: f32,
    body: Colour,
    rim: Colour,
    arms: Colour,
    threads: Colour,
    /// Opacity left after the water between it and the lens.
    clarity: f32,
    /// Which way trailing parts are carried, per radius of length.
    current: Point,
    wave: f32,
    wave_phase: f32,
    spread: f32,
    reach: f32,
    fullness: f32,
    texture: u64,
}

impl Jellyfish {
    /// `distance` 0: near and large; 1: far, small, faded.
    pub fn new(stream: &mut Stream, size: usize, distance: f32) -> Self {
        let side = size as f32;
        let lean = if stream.chance(0.1) { 0.1 } else { 0.04 };
        let angle = (stream.bell() * lean).clamp(-0.3, 0.3);
        let axis = [sine(angle), -cosine(angle)];
        let radius = side * lerp(stream.range(0.17, 0.25), stream.range(0.06, 0.1), distance);
        let away = lerp(0.17, 0.05, distance);
        let wander = lerp(0.045, 0.27, distance);
        let centre = [
            side * (0.5 + axis[0] * away + stream.bell() * wander),
            side * (0.5 + axis[1] * away * 0.7 + stream.bell() * wander),
        ];
        // Crimson and orange animals are the most frequent, then gold, pink, purple and pale ones.
        let (hue, saturation, value) = match stream.index(20) {
            0..11 => (stream.range(-0.01, 0.06), stream.range(0.6, 0.85), stream.range(0.65, 0.95)),
            11..15 => (stream.range(0.06, 0.11), stream.range(0.5, 0.8), stream.range(0.75, 1.0)),
            15..17 => (stream.range(0.92, 0.98), stream.range(0.45, 0.7), stream.range(0.7, 0.95)),
            17..19 => (stream.range(0.78, 0.88), stream.range(0.3, 0.5), stream.range(0.65, 0.9)),
            _ => (stream.range(0.5, 0.62), stream.range(0.05, 0.2), stream.range(0.8, 0.95)),
        };
        let body = hsv(hue, saturation, value * 0.82);
        let rim = hsv(hue + 0.03, saturation * 0.6, lerp(value, 1.0, 0.5));
        let arms = hsv(hue + stream.range(-0.02, 0.04), saturation * 0.5, lerp(value, 1.0, 0.5));
        let threads = hsv(hue + stream.range(0.0, 0.06), saturation * 0.75, lerp(value, 1.0, 0.25));
        let drift = stream.range(-0.2, 0.2);
        Jellyfish {
            centre,
            axis,
            radius,
            height: stream.range(0.6, 1.05),
            flatness: stream.range(0.0, 0.5),
            tilt: stream.range(0.14, 0.4),
            from_below: stream.chance(0.3),
            lobes: 8.0,
            turn: stream.unit(),
            body,
            rim,
            arms,
            threads,
            clarity: lerp(stream.range(0.82, 1.0), stream.range(0.3, 0.6), distance),
            current: [drift, stream.range(0.0, 0.15)],
            wave: stream.range(0.05, 0.2),
            wave_phase: stream.unit(),
            spread: stream.range(-0.35, 0.25),
            reach: stream.range(1.2, 2.1),
            fullness: stream.range(0.7, 1.2) * lerp(1.0, 0.45, distance),
            texture: stream.bits(),
        }
    }

    fn place(&self, u: f32, v: f32) -> Point {
        let [ax, ay] = self.axis;
        // "Across" is the axis turned by a quarter, so that u grows to the right of an upright bell.
        [
            self.centre[0] + self.radius * (-ay * u + ax * v),
            self.centre[1] + self.radius * (ax * u + ay * v),
        ]
    }

    fn local(&self, p: Point) -> Point {
        let (x, y) = ((p[0] - self.centre[0]) / self.radius, (p[1] - self.centre[1]) / self.radius);
        let [ax, ay] = self.axis;
        [-ay * x + ax * y, ax * x + ay * y]
    }

    /// Below 0 inside the bell, 0 on its outline; grows like a squared radius.
    fn outline(&self, u: f32, v: f32) -> f32 {
        if v >= 0.0 {
            let q = (v / self.height) * (v / self.height);
            u * u + lerp(q, q * q, self.flatness) - 1.0
        } else {
            // The near half of the margin, cut into lobes.
            let lobe = cosine(self.lobes * arcsine(u) + self.turn);
            let depth = self.tilt * (0.9 + 0.22 * lobe);
            u * u + (v / depth) * (v / depth) - 1.0
        }
    }

    /// Distance to the outline in pixels, from value and slope.
    fn distance(&self, u: f32, v: f32) -> (f32, f32) {
        const H: f32 = 0.02;
        let f = self.outline(u, v);
        let du = (self.outline(u + H, v) - f) / H;
        let dv = (self.outline(u, v + H) - f) / H;
        let slope = (du * du + dv * dv).sqrt().max(0.5);
        (f, f / slope * self.radius)
    }

    /// Paints the animal, back to front.
    pub fn paint(&self, canvas: &mut Canvas, stream: &mut Stream) {
        self.halo(canvas);
        let detail = (canvas.size as f32 / 32.0).max(0.5);
        let threads = (3.0 * self.fullness * detail.min(6.0)) as usize + 3;
        if self.from_below {
            self.bell(canvas);
        }
        self.threads(canvas, stream, threads, false);
        self.oral_arms(canvas, stream);
        self.threads(canvas, stream, threads, true);
        if !self.from_below {
            self.bell(canvas);
        }
    }

    fn halo(&self, canvas: &mut Canvas) {
        let middle = self.place(0.0, self.height * 0.35);
        let reach = self.radius * 2.6;
        canvas.around(middle, reach, |p| {
            let (dx, dy) = ((p[0] - middle[0]) / reach, (p[1] - middle[1]) / reach);
            let inside = (1.0 - dx * dx - dy * dy).max(0.0);
            (self.rim, 0.14 * self.clarity * inside * inside * inside)
        });
    }

    fn bell(&self, canvas: &mut Canvas) {
        let middle = self.place(0.0, self.height * 0.4);
        // Pixels a rib takes at the margin; finer ones than two pixels are faded out.
        let rib_fade = smoothstep(4.0, 16.0, self.radius);
        let grain_fade = smoothstep(10.0, 30.0, self.radius);
        canvas.around(middle, self.radius * 1.5, |p| {
            let [u, v] = self.local(p);
            let (f, distance) = self.distance(u, v);
            let coverage = (0.5 - distance).clamp(0.0, 1.0);
            if coverage == 0.0 {
                return (self.body, 0.0);
            }
            let facing = (-f).max(0.0).sqrt();
            // Longitude on the dome: ribs run from the margin and meet at the apex.
            let q = (v / self.height).clamp(0.0, 1.0);
            let width = (1.0 - lerp(q * q, q * q * q * q, self.flatness)).max(1e-3).sqrt();
            let longitude = arcsine((u / width).clamp(-1.0, 1.0));
            let rib = cosine(longitude * 2.0 * self.lobes + self.turn);
            let ribs = rib_fade * 0.2 * rib * smoothstep(0.95, 0.25, q);

            let mut colour = blend(self.rim, self.body, smoothstep(0.15, 0.75, facing));
            let mut light = 0.86 + ribs;
            // Light comes from above, whichever way the animal swims.
            let up = -(self.axis[1] * (v - 0.3) + self.axis[0] * u);
            light += 0.22 * up;
            light += 0.1 * grain_fade * self.grain(longitude * 40.0, v * 14.0);
            light += 0.14 * grain_fade * self.grain(longitude * 14.0, v * 4.0);
            colour = scale(colour, light);
            // The stomach shows through the middle of the bell.
            let (su, sv) = (u / 0.42, (v - self.height * 0.42) / (self.height * 0.3));
            let stomach = smoothstep(1.3, 0.3, su * su + sv * sv);
            colour = blend(colour, scale(self.arms, 1.05), lerp(0.12, 0.38, rib_fade) * stomach);
            // A gleam on the shoulder that faces the surface.
            let (gu, gv) = (u + 0.38, (v - self.height * 0.6) * 1.3);
            let gleam = smoothstep(0.09, 0.0, gu * gu + gv * gv);
            colour = blend(colour, [1.0, 1.0, 0.97], lerp(0.1, 0.35, rib_fade) * gleam);
            if self.from_below {
                let inner = u * u / 0.74 + (v / (self.tilt * 0.86)).powi(2);
                let shade = smoothstep(1.15, 0.75, inner);
                let hollow = scale(self.body, 0.55 + 0.15 * rib * rib_fade);
                colour = blend(colour, hollow, lerp(0.5, 0.85, rib_fade) * shade);
            } else {
                let margin = smoothstep(-1.9, -0.3, distance) * smoothstep(0.25, 0.0, v);
                colour = blend(colour, self.rim, lerp(0.15, 0.55, rib_fade) * margin);
            }
            (colour, coverage * self.clarity * lerp(0.96, 0.86, facing))
        });
    }

    /// Smooth noise in −1…1 with features of about one unit.
    fn grain(&self, x: f32, y: f32) -> f32 {
        let (cx, cy) = (x.floor(), y.floor());
        let corner = |i: f32, j: f32| {
            let words = [self.texture, (cx + i) as i64 as u64, (cy + j) as i64 as u64];
            Stream::new(&words).range(-1.0, 1.0)
        };
        let (tx, ty) = (smoothstep(0.0, 1.0, x - cx), smoothstep(0.0, 1.0, y - cy));
        let top = lerp(corner(0.0, 0.0), corner(1.0, 0.0), tx);
        lerp(top, lerp(corner(0.0, 1.0), corner(1.0, 1.0), tx), ty)
    }

    /// A point `t` (0…1) along a trailing part of `length` radii that hangs from (`u`, `v`).
    fn trail(&self, u: f32, v: f32, length: f32, t: f32, phase: f32, wave: f32) -> Point {
        let s = t * length;
        let across = u * (1.0 + self.spread * t) + wave * t * sine(phase - 0.42 * s);
        let p = self.place(across, v - s);
        let carried = self.radius * s * s * 0.5;
        [p[0] + self.current[0] * carried, p[1] + self.current[1] * carried]
    }

    fn oral_arms(&self, canvas: &mut Canvas, stream: &mut Stream) {
        let loose = self.looseness();
        let count = 3 + (stream.index(3) as f32 * loose) as usize;
        let steps = (8.0 + self.radius * 0.6) as usize;
        let (arm_length, arm_width) = (stream.range(0.38, 0.52), stream.range(0.13, 0.17));
        for arm in 0..count {
            let place = (arm as f32 + 0.5) / count as f32 * 2.0 - 1.0;
            let u = place * 0.42 + 0.06 * loose * stream.range(-1.0, 1.0);
            let length = self.reach * arm_length * (1.0 + 0.2 * loose * stream.range(-1.0, 1.0));
            let width = self.radius * arm_width * (1.0 + 0.25 * loose * stream.range(-1.0, 1.0));
            let phase = self.wave_phase + 0.12 * loose * stream.range(-1.0, 1.0);
            let frill = stream.range(1.6, 2.6);
            let shade = 0.94 + 0.15 * loose * stream.range(-1.0, 1.0);
            let knots: Vec<Knot> = (0..=steps)
                .map(|i| {
                    let t = i as f32 / steps as f32;
                    // Frills are the arm's folded edge: it widens and brightens in turns.
                    let fold = loose * sine(phase + frill * t * length);
                    Knot {
                        at: self.trail(u, 0.12, length, t, phase, self.wave * 0.9 + 0.06),
                        half_width: width
                            * lerp(1.0, 0.35, t)
                            * lerp(0.55, 1.0, smoothstep(0.0, 0.3, t))
                            * (1.0 + 0.2 * fold),
                        colour: scale(blend(self.arms, self.body, 0.6 * t), shade + 0.13 * fold),
                        opacity: 0.8 * self.clarity * smoothstep(1.05, 0.55, t),
                    }
                })
                .collect();
            canvas.curve(&knots);
        }
    }

    /// How much the parts of one animal differ from each other: 0 where it is so small that its
    /// tentacles are next to each other pixel by pixel, 1 where each is seen by itself.
    fn looseness(&self) -> f32 {
        lerp(0.15, 1.0, smoothstep(6.0, 30.0, self.radius))
    }

    /// Every second of `count` tentacles: those on the near or on the far side of the margin.
    fn threads(&self, canvas: &mut Canvas, stream: &mut Stream, count: usize, near: bool) {
        let loose = self.looseness();
        let steps = (10.0 + self.radius * 0.5) as usize;
        let tint = stream.range(0.1, 0.5);
        for i in (usize::from(near)..count).step_by(2) {
            let place = (i as f32 + 0.5 + 0.6 * loose * stream.range(-1.0, 1.0)) / count as f32;
            let u = (place * 2.0 - 1.0).clamp(-1.0, 1.0) * 0.9;
            let side = if near { -1.0 } else { 0.6 };
            let v = side * (1.0 - u * u).sqrt() * self.tilt * 0.7 + 0.04;
            // The outermost are the longest.
            let length =
                self.reach * (lerp(0.8, 1.0, u * u) + 0.35 * loose * stream.range(-1.0, 0.5));
            let phase = self.wave_phase + 0.1 * loose * stream.range(-1.0, 1.0) + u * 0.12;
            let wave = self.wave * (1.0 + 0.4 * loose * stream.range(-1.0, 1.0));
            let colour =
                blend(self.threads, self.rim, tint + 0.4 * loose * stream.range(-0.5, 0.5));
            let weight = 0.5 + 0.5 * loose * stream.range(-1.0, 1.0);
            let opacity = lerp(0.45, 0.85, weight) * self.clarity;
            let half_width = (lerp(0.028, 0.055, weight) * self.radius).max(0.5);
            let knots: Vec<Knot> = (0..=steps)
                .map(|i| {
                    let t = i as f32 / steps as f32;
                    Knot {
                        at: self.trail(u, v, length, t, phase, wave),
                        half_width: half_width * lerp(1.0, 0.8, t),
                        colour,
                        opacity: opacity * (1.0 - t * t),
                    }
                })
                .collect();
            canvas.curve(&knots);
        }
    }
}
