// Coloured points that turn: WebGL and nothing else.

const VERTEX = `
attribute vec3 place; attribute vec3 colour; uniform mat4 view; uniform float size; varying vec3 shade;
void main() { gl_Position = view * vec4(place, 1.0); gl_PointSize = size; shade = colour; }`;
const FRAGMENT = "precision mediump float; varying vec3 shade; void main() { gl_FragColor = vec4(shade, 1.0); }";
const STEP = 0.08, CLOSER = 1.15;  // radians and ratio of one press of a key

export class Cloud {
  constructor(canvas) {
    this.canvas = canvas;
    this.gl = canvas.getContext("webgl", {antialias: true, preserveDrawingBuffer: true});
    this.yaw = 0, this.pitch = 0, this.away = 1, this.count = 0, this.turning = false;
    if (!this.gl) return;
    this.#compile();
    this.#listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  #compile() {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, text), gl.compileShader(shader), gl.attachShader(program, shader);
    }
    gl.linkProgram(program), gl.useProgram(program), gl.enable(gl.DEPTH_TEST), gl.clearColor(.063, .082, .11, 1);
    this.uniforms = {view: gl.getUniformLocation(program, "view"), size: gl.getUniformLocation(program, "size")};
    [["place", 3, gl.FLOAT, false], ["colour", 3, gl.UNSIGNED_BYTE, true]].forEach(([name, size, type, normalised]) => {
      const place = gl.getAttribLocation(program, name), buffer = this[name] = gl.createBuffer();
      gl.bindBuffer(gl.ARRAY_BUFFER, buffer), gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, size, type, normalised, 0, 0);
    });
  }

  #listen() {
    const canvas = this.canvas;
    canvas.addEventListener("pointerdown", event => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", event => {
      if (canvas.hasPointerCapture(event.pointerId)) this.turn(event.movementX * .008, event.movementY * .008);
    });
    canvas.addEventListener("wheel", event => (event.preventDefault(), this.approach(CLOSER ** (event.deltaY / 100))), {passive: false});
    const keys = {
      ArrowLeft: () => this.turn(-STEP, 0), ArrowRight: () => this.turn(STEP, 0), ArrowUp: () => this.turn(0, -STEP),
      ArrowDown: () => this.turn(0, STEP), "+": () => this.approach(1 / CLOSER), "-": () => this.approach(CLOSER),
      " ": () => this.turnByItself(!this.turning),
    };
    canvas.addEventListener("keydown", event => keys[event.key] && (event.preventDefault(), keys[event.key]()));
  }

  show(places, colours) {  // Float32Array of x right, y down, z forward in metres; Uint8Array of red, green, blue
    const gl = this.gl;
    this.count = places.length / 3;
    const depths = places.filter((_, i) => i % 3 === 2).sort();
    this.middle = depths[depths.length >> 1] || 1;
    this.yaw = this.pitch = 0, this.away = 1;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.place), gl.bufferData(gl.ARRAY_BUFFER, places, gl.STATIC_DRAW);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.colour), gl.bufferData(gl.ARRAY_BUFFER, colours, gl.STATIC_DRAW);
    this.draw();
  }

  turn(yaw, pitch) {
    this.yaw += yaw, this.pitch = Math.min(1.5, Math.max(-1.5, this.pitch + pitch));
    this.draw();
  }

  approach(ratio) {
    this.away = Math.min(20, Math.max(.05, this.away * ratio));
    this.draw();
  }

  turnByItself(turning) {
    this.turning = turning;
    const step = () => this.turning && (this.turn(.006, 0), requestAnimationFrame(step));
    requestAnimationFrame(step);
  }

  draw() {
    const gl = this.gl, ratio = devicePixelRatio || 1, {clientWidth, clientHeight} = this.canvas;
    if (!gl || !this.count || !clientWidth) return;
    this.canvas.width = clientWidth * ratio, this.canvas.height = clientHeight * ratio;
    gl.viewport(0, 0, this.canvas.width, this.canvas.height), gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.uniformMatrix4fv(this.uniforms.view, false, this.#matrix(clientWidth / clientHeight));
    gl.uniform1f(this.uniforms.size, 2 * ratio);
    gl.drawArrays(gl.POINTS, 0, this.count);
  }

  // About the point at the middle depth on the axis: turned there, seen from `away` times that depth. By columns.
  #matrix(aspect) {
    const [cy, sy, cp, sp, m] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch), this.middle];
    const near = m * .01, far = m * 100, focal = 1.6, a = (far + near) / (far - near), b = -2 * far * near / (far - near);
    // Turned point: x' = cy x + sy (z - m); z' = -sy x + cy (z - m); then y'' = cp y - sp z'; z'' = sp y + cp z'.
    const rows = [
      [cy, 0, sy, -sy * m], [sp * sy, cp, -sp * cy, sp * cy * m], [-cp * sy, sp, cp * cy, -cp * cy * m + m * this.away],
    ];
    const [x, y, z] = rows, scale = Math.min(1, aspect);
    const out = [x.map(v => v * focal * scale / aspect), y.map(v => -v * focal * scale), z.map((v, i) => v * a + (i === 3 ? b : 0)), z];
    return new Float32Array([0, 1, 2, 3].flatMap(column => out.map(row => row[column])));
  }
}
