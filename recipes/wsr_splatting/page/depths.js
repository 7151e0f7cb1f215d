// The order of splats from far to near, by a stable radix sort of their depths on the CPU.

export class DepthOrder {
  constructor(positions, count) {
    this.positions = positions;  // x, y, z of each
    this.count = count;
    this.depths = new Float32Array(count);
    this.keys = new Uint32Array(this.depths.buffer);  // of positive floats: in the same order
    this.pending = new Uint32Array(count);
    this.order = new Uint32Array(count);
    this.places = new Uint32Array(1 << 16);
  }

  // Returns indices, farthest first and of equal depths the last first: the reverse of (d, index).
  sorted(view) {
    const { positions, depths, keys, pending, order, count } = this;
    const [x, y, z, w] = view.slice(8, 12);
    for (let i = 0; i < count; i += 1) {
      const depth = x * positions[3 * i] + y * positions[3 * i + 1] + z * positions[3 * i + 2] + w;
      depths[i] = depth > 0 ? depth : 0;
    }
    this.#pass(0, null, pending);
    this.#pass(16, pending, order);
    return order.reverse();
  }

  #pass(shift, from, to) {
    const { keys, places, count } = this;
    places.fill(0);
    for (let i = 0; i < count; i += 1) places[(keys[i] >>> shift) & 0xffff] += 1;
    for (let i = 0, sum = 0; i < places.length; i += 1) {
      const here = places[i];
      places[i] = sum;
      sum += here;
    }
    for (let i = 0; i < count; i += 1) {
      const splat = from ? from[i] : i;
      const digit = (keys[splat] >>> shift) & 0xffff;
      to[places[digit]] = splat;
      places[digit] += 1;
    }
  }
}
