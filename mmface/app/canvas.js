// A canvas to paint on with a few fixed colours. Strokes have hard edges, so that every pixel has
// one of these colours. The value is the painting as a PNG data URL; `backdrop:URL` from the server
// lays a picture under an empty painting.
const root = element.querySelector('.paint');
const canvas = root.querySelector('canvas');
const pen = canvas.getContext('2d', { willReadFrequently: true });
const base = root.dataset.base;
const sizeInput = root.querySelector('input[type=range]');
const cursor = root.querySelector('.paint-cursor');
const swatches = [...root.querySelectorAll('[data-color]')];
const UNDO_LIMIT = 30;
let tool = 'brush';
let color = swatches[0].dataset.color;
let past = [];
let future = [];
let last = null;
let from = null;
let spot = { x: canvas.width / 2, y: canvas.height / 2 };

const snapshot = () => pen.getImageData(0, 0, canvas.width, canvas.height);
const clear = () => {
  pen.clearRect(0, 0, canvas.width, canvas.height);
  if (base) {
    pen.fillStyle = base;
    pen.fillRect(0, 0, canvas.width, canvas.height);
  }
};
const remember = () => {
  past.push(snapshot());
  if (past.length > UNDO_LIMIT) past.shift();
  future = [];
};
const tell = () => {
  last = canvas.toDataURL('image/png');
  props.value = last;
  trigger('input');
};

const dab = ({ x, y }) => {
  const radius = Number(sizeInput.value) / 2;
  const erasing = tool === 'eraser';
  pen.fillStyle = erasing ? base || '#000' : color;
  for (let row = Math.ceil(y - radius); row <= y + radius; row += 1) {
    const half = Math.sqrt(Math.max(0, radius * radius - (row - y) * (row - y)));
    const left = Math.round(x - half);
    const width = Math.max(1, Math.round(x + half) - left);
    if (erasing && !base) pen.clearRect(left, row, width, 1);
    else pen.fillRect(left, row, width, 1);
  }
};
const stroke = (start, end) => {
  const length = Math.hypot(end.x - start.x, end.y - start.y);
  const steps = Math.max(1, Math.ceil(length / Math.max(1, Number(sizeInput.value) / 8)));
  for (let step = 0; step <= steps; step += 1) {
    const share = step / steps;
    dab({ x: start.x + share * (end.x - start.x), y: start.y + share * (end.y - start.y) });
  }
};
const rgba = (hex) => [1, 3, 5].map((place) => parseInt(hex.slice(place, place + 2), 16));
const fill = ({ x, y }) => {
  const picture = snapshot();
  const pixels = new Uint32Array(picture.data.buffer);
  const [red, green, blue] = rgba(color);
  const wanted = ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const { width, height } = canvas;
  const start = Math.floor(y) * width + Math.floor(x);
  const found = pixels[start];
  if (found === wanted) return;
  const open = [start];
  while (open.length) {
    const place = open.pop();
    if (pixels[place] !== found) continue;
    pixels[place] = wanted;
    const column = place % width;
    if (column > 0) open.push(place - 1);
    if (column < width - 1) open.push(place + 1);
    if (place >= width) open.push(place - width);
    if (place < width * (height - 1)) open.push(place + width);
  }
  pen.putImageData(picture, 0, 0);
};

const show = (url) => {
  if (url && url.startsWith('backdrop:')) {
    root.querySelector('.paint-stage').style.backgroundImage = `url("${url.slice(9)}")`;
    root.classList.add('has-backdrop');
    past = [];
    future = [];
    clear();
    return;
  }
  if (!url) {
    clear();
    return;
  }
  const picture = new Image();
  picture.onload = () => {
    remember();
    clear();
    pen.imageSmoothingEnabled = false;
    pen.drawImage(picture, 0, 0, canvas.width, canvas.height);
  };
  picture.src = url;
};

const place = (event) => {
  const box = canvas.getBoundingClientRect();
  return {
    x: ((event.clientX - box.left) / box.width) * canvas.width,
    y: ((event.clientY - box.top) / box.height) * canvas.height,
  };
};
const drawCursor = () => {
  const box = canvas.getBoundingClientRect();
  const scale = box.width / canvas.width;
  const size = Math.max(4, Number(sizeInput.value) * scale);
  cursor.style.width = `${size}px`;
  cursor.style.height = `${size}px`;
  cursor.style.left = `${spot.x * scale - size / 2}px`;
  cursor.style.top = `${spot.y * scale - size / 2}px`;
};
const begin = (where) => {
  remember();
  if (tool === 'fill') {
    fill(where);
    tell();
    return;
  }
  from = where;
  dab(where);
};
const end = () => {
  if (!from) return;
  from = null;
  tell();
};

canvas.addEventListener('pointerdown', (event) => {
  if (event.button !== 0) return;
  event.preventDefault();
  canvas.focus({ preventScroll: true });
  try {
    canvas.setPointerCapture(event.pointerId);
  } catch (error) {
    // A pointer that is already up cannot be captured; the dab is painted all the same.
  }
  begin(place(event));
});
canvas.addEventListener('pointermove', (event) => {
  spot = place(event);
  drawCursor();
  if (!from) return;
  stroke(from, spot);
  from = spot;
});
canvas.addEventListener('pointerup', end);
canvas.addEventListener('pointercancel', end);

const step = (back, ahead) => {
  if (!back.length) return;
  ahead.push(snapshot());
  pen.putImageData(back.pop(), 0, 0);
  tell();
};
const actions = {
  undo: () => step(past, future),
  redo: () => step(future, past),
  clear: () => {
    remember();
    clear();
    tell();
  },
};
const choose = (buttons, chosen, state) =>
  buttons.forEach((each) => each.setAttribute(state, String(each === chosen)));
const chooseTool = (name) => {
  tool = name;
  const buttons = [...root.querySelectorAll('[data-tool]')];
  choose(buttons, root.querySelector(`[data-tool=${name}]`), 'aria-pressed');
};
const chooseColor = (swatch) => {
  color = swatch.dataset.color;
  choose(swatches, swatch, 'aria-checked');
  swatches.forEach((each) => (each.tabIndex = each === swatch ? 0 : -1));
  if (tool === 'eraser') chooseTool('brush');
};
root.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.tool) chooseTool(button.dataset.tool);
  if (button.dataset.action) actions[button.dataset.action]();
  if (button.dataset.color) chooseColor(button);
});
root.querySelector('.paint-palette').addEventListener('keydown', (event) => {
  const turn = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!turn) return;
  event.preventDefault();
  const now = swatches.findIndex((each) => each.dataset.color === color);
  const next = swatches[(now + turn + swatches.length) % swatches.length];
  chooseColor(next);
  next.focus();
});
canvas.addEventListener('keydown', (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (moves[event.key]) {
    const stride = event.shiftKey ? 24 : 6;
    const [across, down] = moves[event.key];
    spot.x = Math.min(canvas.width - 1, Math.max(0, spot.x + across * stride));
    spot.y = Math.min(canvas.height - 1, Math.max(0, spot.y + down * stride));
    drawCursor();
  } else if (event.key === ' ' || event.key === 'Enter') {
    begin(spot);
    end();
  } else if (event.key === '[' || event.key === ']') {
    sizeInput.value = Number(sizeInput.value) + (event.key === ']' ? 4 : -4);
    drawCursor();
  } else if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === 'z') {
    actions[event.shiftKey ? 'redo' : 'undo']();
  } else {
    return;
  }
  event.preventDefault();
});
canvas.addEventListener('focus', drawCursor);
sizeInput.addEventListener('input', drawCursor);

watch('value', () => {
  if (props.value === last) return;
  last = props.value;
  show(props.value);
});
clear();
if (props.value) {
  last = props.value;
  show(props.value);
}
root.dataset.ready = 'true';
