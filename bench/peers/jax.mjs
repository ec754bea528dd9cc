// jax-js (WebAssembly backend), everything compiled by its jit. In Node it has one thread; with more asked for, it gets
// them through a stand-in for the browser's Worker.
import { gptBatch, gptParameters, gpts, positions, training, uniform } from './inputs.ts'
import { serve } from './peer.mjs'
import { installWorkers } from './worker-shim.mjs'

const threads = Number(process.argv[4] ?? 1)
// Known by a name only at run time: the package may not be installed.
const name = '@jax-js/jax'
let jax, np, nn, jit

async function start() {
  if (threads > 1) installWorkers(threads)
  jax = await import(name)
  ;({ numpy: np, nn, jit } = jax)
  jax.defaultDevice('wasm')
}

const array = (seed, shape, scale) =>
  np
    .array(
      uniform(
        seed,
        shape.reduce((p, d) => p * d, 1),
        scale,
      ),
    )
    .reshape(shape)
/** `fn` compiled once, whoever asks. */
const compiled = new Map()
function jitted(fn) {
  const key = fn.toString()
  if (!compiled.has(key)) compiled.set(key, jit(fn))
  return compiled.get(key)
}
const pick = (data, at) => at.map((p) => data[p])
const done = async (tree) => {
  await jax.blockUntilReady(tree)
  jax.tree.dispose(tree)
}

/** A function of arrays that stay: it is handed references. */
const plain = (fn, inputs) => {
  const call = () => fn(...inputs.map((x) => x.ref))
  return {
    run: () => done(call()),
    values: async () => {
      const data = await call().data()
      return pick(data, positions(data.length))
    },
  }
}

const gemm = (m, k, n) => () =>
  plain(
    jit((a, b) => np.matmul(a, b)),
    [array(1, [m, k]), array(2, [k, n])],
  )

/** q, k, v (H, T, D) */
function attend(q, k, v) {
  const [, t, d] = q.shape
  const scores = np.matmul(q, k.transpose([0, 2, 1])).mul(1 / Math.sqrt(d))
  const hidden = np.where(np.tri(t, t, 0, { dtype: np.bool }), scores, -Infinity)
  // Compiled apart: fused into the products, it would be computed again and again.
  return np.matmul(jitted((x) => nn.softmax(x, -1))(hidden), v)
}
const qkv = (t) => [1, 2, 3].map((seed) => array(seed, [8, t, 64]))

function attentionBackward() {
  const g = array(4, [8, 1024, 64])
  const loss = (q, k, v, w) => attend(q, k, v).mul(w).sum()
  const gradient = jit(jax.grad(loss, { argnums: [0, 1, 2] }))
  const inputs = [...qkv(1024), g]
  const call = () => gradient(...inputs.map((x) => x.ref))
  return {
    run: () => done(call()),
    values: async () => {
      const out = []
      for (const d of call()) out.push(...pick(await d.data(), positions(8 * 1024 * 64)))
      return out
    },
  }
}

/**
 * Chunked: quadratic within chunks, and across them by sums over all earlier ones. In several compiled pieces and with
 * widths that are multiples of 4, without which its matrix product is 50 times slower.
 */
function linearAttention(t) {
  const [h, d, c] = [8, 64, t > 16384 ? 128 : 64]
  const n = t / c
  const feature = jit((x) =>
    np.where(np.greater(x.ref, 0), x.ref.add(1), np.exp(np.minimum(x, 0))).reshape([h, n, c, d]),
  )
  const states = jit((k, v) => [np.matmul(k.ref.transpose([0, 1, 3, 2]), v), k.sum(2)])
  // One matrix per head: a single one, broadcast, gives wrong sums in 0.1.25.
  const triangles = np.array(
    Float32Array.from({ length: h * n * n }, (_, i) => Number(i % n < Math.floor(i / n) % n)),
  )
  const before = jit((all, s, z) => {
    const earlier = all.reshape([h, n, n])
    const sums = np.matmul(earlier.ref, s.reshape([h, n, d * d])).reshape([h, n, d, d])
    return [sums, np.matmul(earlier, z).reshape([h, n, d, 1])]
  })
  const within = jit((q, k) => np.tril(np.matmul(q, k.transpose([0, 1, 3, 2]))))
  const numerator = jit((w, v, q, s) => np.matmul(w, v).add(np.matmul(q, s)))
  const divided = jit((y, w, q, z) => y.div(w.sum(-1, { keepdims: true }).add(np.matmul(q, z)).add(1e-6)))
  return (q, k, v) => {
    const [fq, fk, values] = [feature(q), feature(k), v.reshape([h, n, c, d])]
    const [s, z] = before(triangles.ref, ...states(fk.ref, values.ref))
    const w = within(fq.ref, fk)
    return divided(numerator(w.ref, values, fq.ref, s), w, fq, z).reshape([h, t, d])
  }
}

function adamw() {
  const { lr, beta1, beta2, eps, decay } = training
  const step = jit((p, g, m, v, size, root2) => {
    const mean = m.mul(beta1).add(g.ref.mul(1 - beta1))
    const square = v.mul(beta2).add(g.ref.mul(g).mul(1 - beta2))
    const next = p.mul(1 - lr * decay).sub(size.mul(mean.ref).div(np.sqrt(square.ref).div(root2).add(eps)))
    return [next, mean, square]
  })
  return { lr, beta1, beta2, step }
}

function adamw10M() {
  const { lr, beta1, beta2, step } = adamw()
  const g = array(2, [1e7])
  let state = [array(1, [1e7]), np.zeros([1e7]), np.zeros([1e7])]
  let t = 0
  const run = async () => {
    t++
    const [p, m, v] = state
    state = step(p, g.ref, m, v, np.array(lr / (1 - beta1 ** t)), np.array(Math.sqrt(1 - beta2 ** t)))
    await jax.blockUntilReady(state)
  }
  return {
    run,
    values: async () => {
      await run()
      return pick(await state[0].ref.data(), positions(1e7))
    },
  }
}

function gptStep(workload) {
  const size = gpts[workload]
  const { layers, heads, width: c, batch: b, block: t, vocab } = size
  const { lr, beta1, beta2, eps, decay, clip } = training
  const named = gptParameters(size)
  const at = Object.fromEntries(named.map((p, i) => [p.name, i]))
  const data = gptBatch(size)
  const tokens = np.array(data.tokens, { dtype: np.int32 })
  const targets = np.array(data.targets, { dtype: np.int32 })

  const linear = (x, w) => np.matmul(x, w.transpose())
  const norm = (x, w) => nn.standardize(x, -1).mul(w)
  const loss = (params, idx, goal) => {
    const p = (key) => params[at[key]].ref
    let x = np
      .matmul(nn.oneHot(idx, vocab), p('wte.weight'))
      .reshape([b, t, c])
      .add(p('wpe.weight'))
      .reshape([b * t, c])
    const split = (y) =>
      y
        .reshape([b, t, heads, c / heads])
        .transpose([0, 2, 1, 3])
        .reshape([b * heads, t, c / heads])
    for (let i = 0; i < layers; i++) {
      const three = linear(norm(x.ref, p(`h.${i}.ln_1.weight`)), p(`h.${i}.attn.c_attn.weight`))
      const [q, k, v] = np.split(three, 3, -1).map(split)
      const mixed = attend(q, k, v)
        .reshape([b, heads, t, c / heads])
        .transpose([0, 2, 1, 3])
        .reshape([b * t, c])
      x = x.add(linear(mixed, p(`h.${i}.attn.c_proj.weight`)))
      const wide = linear(norm(x.ref, p(`h.${i}.ln_2.weight`)), p(`h.${i}.mlp.c_fc.weight`))
      x = x.add(linear(nn.gelu(wide, { approximate: false }), p(`h.${i}.mlp.c_proj.weight`)))
    }
    const logits = linear(norm(x, p('ln_f.weight')), p('wte.weight'))
    const picked = nn.logSoftmax(logits, -1).mul(nn.oneHot(goal, vocab))
    params.forEach((param) => void param.dispose())
    return picked.sum().mul(-1 / (b * t))
  }
  const gradient = jax.valueAndGrad(loss)
  const step = jit((params, ms, vs, idx, goal, stepSize, root2) => {
    const [value, grads] = gradient(
      params.map((p) => p.ref),
      idx,
      goal,
    )
    let total = null
    for (const g of grads) {
      const part = np.sum(np.square(g.ref))
      total = total ? total.add(part) : part
    }
    const factor = np.minimum(np.reciprocal(np.sqrt(total).add(1e-6)).mul(clip), 1)
    const [nextP, nextM, nextV] = [[], [], []]
    params.forEach((p, i) => {
      const g = grads[i].mul(factor.ref)
      const m = ms[i].mul(beta1).add(g.ref.mul(1 - beta1))
      const v = vs[i].mul(beta2).add(np.square(g).mul(1 - beta2))
      const kept = named[i].shape.length > 1 ? p.mul(1 - lr * decay) : p
      nextP.push(kept.sub(m.ref.mul(stepSize.ref).div(np.sqrt(v.ref).div(root2.ref).add(eps))))
      nextM.push(m)
      nextV.push(v)
    })
    factor.dispose()
    stepSize.dispose()
    root2.dispose()
    return [value, nextP, nextM, nextV]
  })
  const zeros = () => named.map(({ shape }) => np.zeros(shape))
  let state = [named.map(({ shape, data }) => np.array(data).reshape(shape)), zeros(), zeros()]
  let n = 0
  const once = async () => {
    n++
    const scalars = [np.array(lr / (1 - beta1 ** n)), np.array(Math.sqrt(1 - beta2 ** n))]
    const [value, ...next] = step(...state, tokens.ref, targets.ref, ...scalars)
    state = next
    await jax.blockUntilReady(state)
    return (await value.data())[0]
  }
  return { run: once, values: async () => [await once(), await once(), await once()] }
}

await serve(
  {
    'gemm 1024': gemm(1024, 1024, 1024),
    ...Object.fromEntries([1, 2, 4, 8, 16].map((m) => [`gemm M=${m} cached`, gemm(m, 512, 512)])),
    'attention forward': () => plain(jit(attend), qkv(1024)),
    'attention forward + backward': attentionBackward,
    'linear attention T=4096': () => plain(linearAttention(4096), qkv(4096)),
    'linear attention T=65536': () => plain(linearAttention(65536), qkv(65536)),
    'GELU forward': () =>
      plain(
        jit((x) => nn.gelu(x, { approximate: false })),
        [array(1, [4 * 2 ** 20], 4)],
      ),
    'softmax forward': () =>
      plain(
        jit((x) => nn.softmax(x, -1)),
        [array(1, [4096, 1024], 4)],
      ),
    'layer norm forward': () =>
      plain(
        jit((x, w, b) => nn.standardize(x, -1).mul(w).add(b)),
        [array(1, [4096, 1024], 4), array(3, [1024]), array(4, [1024])],
      ),
    'AdamW 10M': adamw10M,
    'training step A': gptStep,
    'training step B': gptStep,
    tiny: gptStep,
  },
  start,
)
