import { manualSeed, memory, ones, randn, scope, type Tensor, tensor, zeros } from '@tilegrad/core'
import {
  AdamW,
  BatchNorm1d,
  EMA,
  GradScaler,
  Linear,
  Lion,
  LRScheduler,
  loadCheckpoint,
  loadSafetensors,
  type Module,
  Muon,
  parameter,
  ReduceLROnPlateau,
  readSafetensors,
  Sequential,
  SGD,
  type StateDict,
  StepLR,
  saveCheckpoint,
  saveSafetensors,
  schedule,
  writeSafetensors,
} from '@tilegrad/nn'
import { describe, expect, it } from 'vitest'
import { values } from './helpers.ts'

/** A training with everything that has a state. */
function training(seed: number) {
  manualSeed(seed)
  const model = new Sequential(new Linear(3, 4), new BatchNorm1d(4), new Linear(4, 1))
  const [matrices, vectors] = [
    model.parameters().filter((p) => p.rank === 2),
    model.parameters().filter((p) => p.rank < 2),
  ]
  const adam = new AdamW(
    [
      { params: [vectors[0]], lr: 0.02 },
      { params: vectors.slice(1), weightDecay: 0 },
    ],
    { lr: 0.01 },
  )
  const optimizers = [new Muon(matrices, { lr: 0.02 }), adam]
  const scheduler = new StepLR(adam, 2, { gamma: 0.5 })
  const plateau = new ReduceLROnPlateau(adam, { patience: 1 })
  const ema = new EMA(model, { decay: 0.5 })
  const scaler = new GradScaler({ initScale: 8, growthInterval: 2 })
  const step = (x: Tensor): void =>
    scope(() => {
      scaler.scale(model.forward(x).square().mean()).backward()
      for (const optimizer of optimizers) scaler.step(optimizer)
      scaler.update()
      for (const optimizer of optimizers) optimizer.zeroGrad()
      scheduler.step()
      plateau.step(1)
      ema.update()
    })
  return { step, all: { model, optimizers, scheduler, plateau, ema, scaler } }
}

const weights = (model: Module): number[][] => Object.values(model.stateDict()).map(values)

describe('checkpoints', () => {
  it('continue with the same bits, over all that has a state', async () => {
    const batches = [1, 2, 3, 4, 5, 6].map((seed) => {
      manualSeed(seed)
      const x = randn([5, 3])
      return seed === 2 ? x.mul(Infinity) : x
    })
    const first = training(1)
    // An overflow poisons running statistics, as it does in PyTorch; they are compared as well.
    for (const x of batches.slice(0, 3)) first.step(x)
    const bytes = await saveCheckpoint({ ...first.all, step: 3, note: 'half way' })
    for (const x of batches.slice(3)) first.step(x)

    const second = training(99)
    second.step(batches[0])
    const rest = loadCheckpoint<{ step: number; note: string }>(bytes, second.all)
    expect(rest).toEqual({ step: 3, note: 'half way' })
    for (const x of batches.slice(3)) second.step(x)
    expect(weights(second.all.model)).toEqual(weights(first.all.model))
    expect(weights(second.all.ema)).toEqual(weights(first.all.ema))
    expect(second.all.optimizers[1].paramGroups.map(({ lr }) => lr)).toEqual(
      first.all.optimizers[1].paramGroups.map(({ lr }) => lr),
    )
    expect(await second.all.scaler.getScale()).toBe(await first.all.scaler.getScale())
    // What is shared is one tensor after loading: the count of skipped steps.
    const { state } = second.all.optimizers[0].stateDict()
    expect(values(state[0].skipped)).toEqual([1])
    expect(state[1].skipped).toBe(state[0].skipped)
  })

  it('keep plain data, dtypes and tensors that are one', async () => {
    const t = tensor([1.5, -2])
    const entries = {
      numbers: [0, -0, 1e-300, Number.NaN, Infinity, -Infinity],
      text: 'ü "quoted"',
      nothing: null,
      left: undefined,
      flags: { on: true, $tensor: 'mine', $: 1, 'a.b': t },
      a: {
        b: t,
        half: t.to('bfloat16'),
        small: t.to('float16'),
        yes: tensor([true, false]),
        scalar: tensor(7),
      },
      'a.half': zeros([0, 3]),
      double: tensor([0.1], { dtype: 'float64' }),
      whole: tensor([2 ** 30], { dtype: 'int32' }),
    }
    const bytes = await saveCheckpoint(entries)
    const back = loadCheckpoint<typeof entries>(bytes)
    expect(back.numbers).toEqual(entries.numbers)
    expect(Object.is(back.numbers[1], -0)).toBe(true)
    expect([back.text, back.nothing, 'left' in back]).toEqual([entries.text, null, false])
    expect(back.flags).toMatchObject({ on: true, $tensor: 'mine', $: 1 })
    expect(back.flags['a.b']).toBe(back.a.b)
    const dtypes = ({ a, double, whole }: typeof entries) =>
      [...Object.values(a), double, whole].map((x) => [x.dtype, x.shape, values(x)])
    expect(dtypes(back)).toEqual(dtypes(entries))
    expect(back['a.half'].shape).toEqual([0, 3])
    // Other programs read the tensors, by names that say what they are.
    expect([...readSafetensors(bytes).tensors.keys()].sort()).toEqual(
      ['a.half', 'a.half#2', 'a.scalar', 'a.small', 'a.yes', 'double', 'flags.a.b', 'whole'].sort(),
    )
  })

  it('hand states to loadStateDict, and load into what is named alone', async () => {
    const model = new Linear(2, 1)
    const optimizer = new SGD(model.parameters(), { momentum: 0.9 })
    const bytes = await saveCheckpoint({
      model: model.stateDict(),
      optimizer: optimizer.stateDict(),
      epoch: 4,
    })
    const checkpoint = loadCheckpoint<{ model: StateDict; epoch: number }>(bytes)
    const other = new Linear(2, 1)
    other.loadStateDict(checkpoint.model)
    expect(weights(other)).toEqual(weights(model))
    const one = new Linear(2, 1)
    const rest = loadCheckpoint(bytes, { model: one })
    expect(Object.keys(rest)).toEqual(['optimizer', 'epoch'])
    expect(weights(one)).toEqual(weights(model))
    expect(Object.keys(loadSafetensors(bytes))).toEqual(['model.weight', 'model.bias'])
  })

  it('leave no memory behind', async () => {
    const { step, all } = training(5)
    step(ones([5, 3]))
    const bytes = await saveCheckpoint(all)
    loadCheckpoint(bytes, all)
    const { tensors } = memory()
    await saveCheckpoint(all)
    loadCheckpoint(bytes, all)
    expect(() => loadCheckpoint(bytes, { model: new Linear(1, 1, { bias: false }) })).toThrow()
    expect(memory().tensors).toBe(tensors + 1) // the weight of that
  })

  it('change nothing where anything does not fit', async () => {
    const { step, all } = training(1)
    step(ones([5, 3]))
    const other = training(2)
    other.step(ones([5, 3]))
    const before = JSON.stringify([
      weights(other.all.model),
      weights(other.all.ema),
      other.all.scheduler.stateDict(),
    ])
    const unchanged = (): void =>
      expect(
        JSON.stringify([weights(other.all.model), weights(other.all.ema), other.all.scheduler.stateDict()]),
      ).toBe(before)
    const [muon, adam] = other.all.optimizers
    const bytes = await saveCheckpoint({ ...all, step: 1 })
    const refuses = (into: Record<string, unknown>, message: RegExp): void => {
      expect(() => loadCheckpoint(bytes, into)).toThrow(message)
      unchanged()
    }
    refuses(
      { ...other.all, optimizers: [muon] },
      /'optimizers' holds .*, which does not fit a list of 1; nothing was/,
    )
    refuses({ ...other.all, optimizers: [adam, muon] }, /AdamW.loadStateDict: the groups hold/)
    refuses({ ...other.all, optimizer: adam }, /the file has no 'optimizer'; it has \["model","optimizers"/)
    refuses({ ...other.all, step: adam }, /'step' holds 1, which does not fit a AdamW/)
    refuses({ ...other.all, step: 3 }, /'step' must be a module, an optimiser or a scheduler, got 3/)
    refuses(
      { model: other.all.model, ema: new EMA(new Linear(1, 1)) },
      /does not fit EMA; nothing was changed/,
    )
    const lion = new Lion(other.all.model.parameters().slice(0, 2))
    refuses({ model: other.all.model, plateau: lion }, /Lion.loadStateDict: takes what stateDict\(\) gave/)
    const lr = new LRScheduler(lion, () => schedule.constant(1))
    refuses({ model: other.all.model, scheduler: lr }, /baseLrs must be 1 rates/)
    // What cannot say whether a state fits is asked first.
    const own = {
      stateDict: () => ({}),
      loadStateDict: () => {
        throw new Error('mine')
      },
    }
    refuses({ model: other.all.model, scheduler: own }, /mine/)
  })

  it('refuse what is damaged, whatever it is', async () => {
    const model = new Linear(2, 1)
    const optimizer = new AdamW(model.parameters())
    model
      .forward(ones([1, 2]))
      .sum()
      .backward()
    optimizer.step()
    const bytes = await saveCheckpoint({ model, optimizer, step: 1 })
    for (let length = 0; length < bytes.length; length += 7)
      expect(() => loadCheckpoint(bytes.slice(0, length))).toThrow(/^safetensors: /)
    await expect(async () => loadCheckpoint(await saveSafetensors(model.stateDict()))).rejects.toThrow(
      /loadCheckpoint: this safetensors file holds tensors alone; read it by loadSafetensors/,
    )
    const { tensors } = readSafetensors(bytes)
    const file = (tree: unknown): Uint8Array =>
      writeSafetensors(tensors, {
        'tilegrad.checkpoint': typeof tree === 'string' ? tree : JSON.stringify(tree),
      })
    expect(() => loadCheckpoint(file('{'))).toThrow(/is no JSON: .*; is the file damaged\?/)
    expect(() => loadCheckpoint(file({ x: { $tensor: 'y' } }))).toThrow(
      /it has no tensor "y"; is the file damaged/,
    )
    expect(() => loadCheckpoint(file({ x: { $number: 'y' } }))).toThrow(/"y" is no number/)
    expect(() => loadCheckpoint(file({}))).toThrow(
      /its tensors \["model.weight","model.bias",.* belong to nothing/,
    )
    expect(() => loadCheckpoint(file('{"__proto__":{}}'))).toThrow(/nothing can be called '__proto__'/)
    expect(() => loadCheckpoint(file(`${'['.repeat(1e4)}${']'.repeat(1e4)}`))).toThrow(/nested too deeply/)

    // Any one byte of the header changed: an error that says what is wrong, or another state that fits.
    const target = { model: new Linear(2, 1), optimizer: new AdamW(new Linear(2, 1).parameters()) }
    const header = bytes.length - [...tensors.values()].reduce((n, t) => n + t.bytes.length, 0)
    for (let at = 0; at < header; at += 3) {
      const broken = bytes.slice()
      broken[at] ^= 1 << (at % 7)
      try {
        loadCheckpoint(broken, target)
      } catch (error) {
        expect(String(error)).toMatch(
          /^(ValueError|ShapeError|DTypeError): (safetensors|loadCheckpoint|loadStateDict|AdamW)/,
        )
      }
    }
  })

  it('say what cannot be saved', async () => {
    const loop: Record<string, unknown> = {}
    loop.self = loop
    const refuses = (entries: unknown, message: RegExp) =>
      expect(saveCheckpoint(entries as Record<string, unknown>)).rejects.toThrow(message)
    await refuses(new Linear(1, 1), /takes entries by name, as \{ model, optimizer, step \}/)
    await refuses(
      { a: [{ when: new Date(0) }] },
      /'a.0.when' must be a tensor, plain data, or have stateDict/,
    )
    await refuses({ a: () => 1 }, /'a' must be a tensor, plain data/)
    await refuses({ a: 1n }, /'a' must be a tensor, plain data/)
    await refuses(loop, /nested more than 100 deep; is it in itself\?/)
    await refuses({ p: parameter(zeros([1])), ['__proto__']: 1 }, /nothing can be called '__proto__'/)
  })
})
