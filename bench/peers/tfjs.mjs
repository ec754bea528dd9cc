// TensorFlow.js with its WebAssembly backend, which has one thread in Node. It has no AdamW: the update is written out
// with its operators, as are layer norm and attention.
import { createRequire } from 'node:module'
import { dirname } from 'node:path'
import { gptBatch, gptParameters, gpts, positions, training, uniform } from './inputs.ts'
import { serve } from './peer.mjs'

const require = createRequire(import.meta.url)
let tf

async function start() {
  // Known by their names only at run time: the packages may not be installed.
  const [core, wasm] = ['@tensorflow/tfjs', '@tensorflow/tfjs-backend-wasm']
  tf = require(core)
  require(wasm).setWasmPaths(`${dirname(require.resolve(wasm))}/`)
  await tf.setBackend('wasm')
  await tf.ready()
}

const array = (seed, shape, scale) =>
  tf.tensor(
    uniform(
      seed,
      shape.reduce((p, d) => p * d, 1),
      scale,
    ),
    shape,
  )
const pick = (data, at) => at.map((p) => data[p])

const plain = (fn, inputs) => ({
  run: () => tf.tidy(() => void fn(...inputs)),
  values: () => {
    const data = tf.tidy(() => fn(...inputs).dataSync())
    return pick(data, positions(data.length))
  },
})

/** Its fast matrix product (30 GFLOP/s, else 2) takes no batch: larger matrices go one by one. */
const matMul = (a, b) =>
  a.rank === 2 || a.size < 128 * 128 * a.shape[0]
    ? tf.matMul(a, b)
    : tf.stack(tf.unstack(a).map((x, i) => tf.matMul(x, tf.gather(b, i))))

/** Nor does it take transposed operands: in the gradient, too, they are made real first. */
const product = (a, b) =>
  tf.customGrad((x, y, save) => {
    save([x, y])
    const swap = (t) => tf.transpose(t, t.rank === 2 ? [1, 0] : [0, 2, 1])
    const gradFunc = (dz, [p, q]) => [matMul(dz, swap(q)), matMul(swap(p), dz)]
    return { value: matMul(x, y), gradFunc }
  })(a, b)

/** q, k, v (H, T, D) */
function attend(q, k, v, mask) {
  const scores = product(tf.mul(q, 1 / Math.sqrt(q.shape[2])), tf.transpose(k, [0, 2, 1]))
  return product(tf.softmax(tf.add(scores, mask)), v)
}
/** 0 where a key is seen, −10⁹ where it is not. */
const causal = (t) => tf.tidy(() => tf.mul(tf.sub(1, tf.linalg.bandPart(tf.ones([t, t]), -1, 0)), -1e9))
const qkv = (t) => [1, 2, 3].map((seed) => array(seed, [8, t, 64]))

function attentionBackward() {
  const g = array(4, [8, 1024, 64])
  const mask = causal(1024)
  const inputs = qkv(1024)
  const gradient = tf.grads((q, k, v) => tf.sum(tf.mul(attend(q, k, v, mask), g)))
  return {
    run: () => tf.tidy(() => void gradient(inputs)),
    values: () =>
      tf.tidy(() => gradient(inputs).flatMap((d) => pick(d.dataSync(), positions(8 * 1024 * 64)))),
  }
}

/** Chunk by chunk, with running sums. */
function linearAttention(q, k, v) {
  const [h, t, d] = q.shape
  const c = 128
  const feature = (x) => tf.add(tf.elu(x), 1)
  const [fq, fk] = [feature(q), feature(k)]
  const lower = tf.linalg.bandPart(tf.ones([c, c]), -1, 0)
  let state = tf.zeros([h, d, d])
  let total = tf.zeros([h, d, 1])
  const parts = []
  for (let at = 0; at < t; at += c) {
    const [x, y, z] = [fq, fk, v].map((a) => tf.slice(a, [0, at, 0], [h, c, d]))
    const turned = tf.transpose(y, [0, 2, 1])
    const w = tf.mul(matMul(x, turned), lower)
    const above = tf.add(matMul(w, z), matMul(x, state))
    const below = tf.add(tf.sum(w, -1, true), matMul(x, total))
    parts.push(tf.div(above, tf.add(below, 1e-6)))
    state = tf.add(state, matMul(turned, z))
    total = tf.add(total, tf.reshape(tf.sum(y, 1), [h, d, 1]))
  }
  return tf.concat(parts, 1)
}

// No erfc and no fused kernel; erf is its own.
const gelu = (x) => tf.mul(tf.mul(x, 0.5), tf.add(tf.erf(tf.mul(x, Math.SQRT1_2)), 1))
function norm(x, w) {
  const centred = tf.sub(x, tf.mean(x, -1, true))
  const variance = tf.mean(tf.square(centred), -1, true)
  return tf.mul(tf.mul(centred, tf.rsqrt(tf.add(variance, 1e-5))), w)
}

/** One update: the new parameter and moments. */
function updated(p, g, m, v, step, decays) {
  const { lr, beta1, beta2, eps, decay } = training
  const mean = tf.add(tf.mul(m, beta1), tf.mul(g, 1 - beta1))
  const square = tf.add(tf.mul(v, beta2), tf.mul(tf.square(g), 1 - beta2))
  const root = tf.add(tf.div(tf.sqrt(square), Math.sqrt(1 - beta2 ** step)), eps)
  const kept = decays ? tf.mul(p, 1 - lr * decay) : p
  return [tf.sub(kept, tf.mul(tf.div(mean, root), lr / (1 - beta1 ** step))), mean, square]
}

function adamw10M() {
  const g = array(2, [1e7])
  let state = [array(1, [1e7]), tf.zeros([1e7]), tf.zeros([1e7])]
  let step = 0
  const run = () => {
    step++
    const next = tf.tidy(() => updated(state[0], g, state[1], state[2], step, true))
    tf.dispose(state)
    state = next
  }
  return {
    run,
    values: () => {
      run()
      return pick(state[0].dataSync(), positions(1e7))
    },
  }
}

function gptStep(workload) {
  const size = gpts[workload]
  const { layers, heads, width: c, batch: b, block: t, vocab } = size
  // Matrices that are multiplied by are kept as (in, out).
  const turned = (name) => name.startsWith('h.') && !name.includes('ln_')
  const model = Object.fromEntries(
    gptParameters(size).map(({ name, shape, data }) => [
      name,
      tf.tidy(() =>
        tf.variable(turned(name) ? tf.transpose(tf.tensor(data, shape)) : tf.tensor(data, shape)),
      ),
    ]),
  )
  const moments = Object.fromEntries(
    Object.entries(model).map(([name, p]) => [name, [tf.zeros(p.shape), tf.zeros(p.shape)]]),
  )
  const data = gptBatch(size)
  const tokens = tf.oneHot(tf.tensor1d(data.tokens, 'int32'), vocab).toFloat()
  const targets = tf.oneHot(tf.tensor1d(data.targets, 'int32'), vocab).toFloat()
  const mask = causal(t)
  const split = (y) =>
    tf.reshape(tf.transpose(tf.reshape(y, [b, t, heads, c / heads]), [0, 2, 1, 3]), [b * heads, t, c / heads])
  const loss = () => {
    const p = model
    const embedded = tf.reshape(product(tokens, p['wte.weight']), [b, t, c])
    let x = tf.reshape(tf.add(embedded, p['wpe.weight']), [b * t, c])
    for (let i = 0; i < layers; i++) {
      const three = product(norm(x, p[`h.${i}.ln_1.weight`]), p[`h.${i}.attn.c_attn.weight`])
      const [q, k, v] = tf.split(three, 3, 1).map(split)
      const joined = tf.transpose(tf.reshape(attend(q, k, v, mask), [b, heads, t, c / heads]), [0, 2, 1, 3])
      x = tf.add(x, product(tf.reshape(joined, [b * t, c]), p[`h.${i}.attn.c_proj.weight`]))
      const wide = product(norm(x, p[`h.${i}.ln_2.weight`]), p[`h.${i}.mlp.c_fc.weight`])
      x = tf.add(x, product(gelu(wide), p[`h.${i}.mlp.c_proj.weight`]))
    }
    const logits = product(norm(x, p['ln_f.weight']), tf.transpose(p['wte.weight']))
    return tf.mul(tf.sum(tf.mul(tf.logSoftmax(logits), targets)), -1 / (b * t))
  }
  let step = 0
  const run = () => {
    step++
    return tf.tidy(() => {
      const { value, grads } = tf.variableGrads(loss)
      const list = Object.values(model).map((p) => [p, grads[p.name]])
      const total = tf.sqrt(tf.addN(list.map(([, g]) => tf.sum(tf.square(g)))))
      const factor = tf.minimum(1, tf.div(training.clip, tf.add(total, 1e-6)))
      for (const [name, p] of Object.entries(model)) {
        const [m, v] = moments[name]
        const g = tf.mul(grads[p.name], factor)
        const [next, mean, square] = updated(p, g, m, v, step, p.rank > 1)
        p.assign(next)
        moments[name] = [tf.keep(mean), tf.keep(square)]
        tf.dispose([m, v])
      }
      return value.dataSync()[0]
    })
  }
  return { run, values: () => [run(), run(), run()] }
}

await serve(
  {
    'gemm 1024': () => plain((a, b) => tf.matMul(a, b), [array(1, [1024, 1024]), array(2, [1024, 1024])]),
    ...Object.fromEntries(
      [1, 2, 4, 8, 16].map((m) => [
        `gemm M=${m} cached`,
        () => plain((a, b) => tf.matMul(a, b), [array(1, [m, 512]), array(2, [512, 512])]),
      ]),
    ),
    'attention forward': () => plain(attend, [...qkv(1024), causal(1024)]),
    'attention forward + backward': attentionBackward,
    'linear attention T=4096': () => plain(linearAttention, qkv(4096)),
    'linear attention T=65536': () => plain(linearAttention, qkv(65536)),
    'GELU forward': () => plain(gelu, [array(1, [4 * 2 ** 20], 4)]),
    'softmax forward': () => plain((x) => tf.softmax(x), [array(1, [4096, 1024], 4)]),
    'layer norm forward': () =>
      plain(
        (x, w, b) => tf.add(norm(x, w), b),
        [array(1, [4096, 1024], 4), array(3, [1024]), array(4, [1024])],
      ),
    'AdamW 10M': adamw10M,
    'training step A': gptStep,
    'training step B': gptStep,
    tiny: gptStep,
  },
  start,
)
