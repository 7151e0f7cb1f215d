// Cameras: OpenCV axes (x right, y down, z forward), view = world to camera, 4 x 4 row-major.

const add = (a, b) => a.map((one, i) => one + b[i]);
const sub = (a, b) => a.map((one, i) => one - b[i]);
const scale = (a, s) => a.map((one) => one * s);
const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
const cross = (a, b) => [
  a[1] * b[2] - a[2] * b[1],
  a[2] * b[0] - a[0] * b[2],
  a[0] * b[1] - a[1] * b[0],
];
const unit = (a) => scale(a, 1 / Math.hypot(...a));

// Rotates v about a unit axis (Rodrigues).
function turned(v, axis, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  return add(add(scale(v, c), scale(cross(axis, v), s)), scale(axis, dot(axis, v) * (1 - c)));
}

// A pose is its three axes in the world (right, down, forward) and where it stands.
export function poseOf(view) {
  const [right, down, forward] = [0, 4, 8].map((start) => [...view.slice(start, start + 3)]);
  const t = [view[3], view[7], view[11]];
  const position = scale(add(add(scale(right, t[0]), scale(down, t[1])), scale(forward, t[2])), -1);
  return { right, down, forward, position };
}

export function viewOf({ right, down, forward, position }) {
  const row = (axis) => [...axis, -dot(axis, position)];
  return Float32Array.from([...row(right), ...row(down), ...row(forward), 0, 0, 0, 1]);
}

// Intrinsics of the same camera for another frame, which it covers: what is cut off is at an edge.
export function fitted({ intrinsics, size }, [width, height]) {
  const s = Math.max(width / size[0], height / size[1]);
  const [fx, fy, cx, cy] = intrinsics;
  return [fx * s, fy * s, cx * s + (width - size[0] * s) / 2, cy * s + (height - size[1] * s) / 2];
}

// The point nearest to all optical axes: sum (I - d d^T) (p - o) = 0 over cameras. What the axes
// leave open (one camera, or parallel ones) is taken from a point in front of the first.
export function centreOf(poses, distance = 4) {
  const m = [[0, 0, 0], [0, 0, 0], [0, 0, 0]];
  const b = [0, 0, 0];
  const guess = add(poses[0].position, scale(poses[0].forward, distance));
  const pull = 1e-3 * poses.length;
  for (let i = 0; i < 3; i += 1) {
    m[i][i] = pull;
    b[i] = pull * guess[i];
  }
  for (const { forward: d, position: o } of poses) {
    for (let i = 0; i < 3; i += 1) {
      for (let j = 0; j < 3; j += 1) {
        const part = (i === j ? 1 : 0) - d[i] * d[j];
        m[i][j] += part;
        b[i] += part * o[j];
      }
    }
  }
  const determinant = dot(m[0], cross(m[1], m[2]));
  const column = (k) => m.map((row, i) => row.map((one, j) => (j === k ? b[i] : one)));
  const solved = [0, 1, 2].map((k) => {
    const [r0, r1, r2] = column(k);
    return dot(r0, cross(r1, r2)) / determinant;
  });
  return dot(sub(solved, poses[0].position), poses[0].forward) > 0 ? solved : guess;
}

// A camera that turns about a centre; it starts at the first of the scene's own cameras.
export class Orbit {
  constructor(cameras) {
    this.cameras = cameras;
    const poses = cameras.map(({ view }) => poseOf(view));
    this.centre = centreOf(poses);
    this.up = unit(poses.reduce((sum, { down }) => sub(sum, down), [0, 0, 0]));
    this.start = poses[0];
    this.reset();
  }

  reset() {
    this.pose = this.start;
  }

  #rotate(axis, angle) {
    const { right, down, forward, position } = this.pose;
    const moved = turned(sub(position, this.centre), axis, angle);
    return {
      right: turned(right, axis, angle),
      down: turned(down, axis, angle),
      forward: turned(forward, axis, angle),
      position: add(this.centre, moved),
    };
  }

  // Radians: a positive yaw takes the camera to its right, a positive pitch down; it stops short of
  // standing on its head.
  turn(yaw, pitch) {
    this.pose = this.#rotate(this.up, yaw);
    const pitched = this.#rotate(this.pose.right, pitch);
    if (Math.abs(dot(pitched.forward, this.up)) < 0.985) this.pose = pitched;
  }

  zoom(factor) {
    const arm = scale(sub(this.pose.position, this.centre), factor);
    const first = Math.hypot(...sub(this.start.position, this.centre));
    const length = Math.hypot(...arm);
    if (length > 0.1 * first && length < 10 * first) {
      this.pose = { ...this.pose, position: add(this.centre, arm) };
    }
  }

  camera(size) {
    return { view: viewOf(this.pose), intrinsics: fitted(this.cameras[0], size), size };
  }
}
