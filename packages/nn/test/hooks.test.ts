import {
  autocast,
  checkpoint,
  compile,
  grad,
  memory,
  noGrad,
  ones,
  randn,
  scope,
  type Tensor,
  TilegradError,
  tensor,
} from '@tilegrad/core'
import { GPT, Identity, Linear, LSTM, Module, Sequential, Sigmoid, Tanh } from '@tilegrad/nn'
import { describe, expect, expectTypeOf, it } from 'vitest'
import { collected } from '../../core/test/support/collected.ts'
import { expectNumbers, values } from './helpers.ts'

// float32 against the same in another order: a few roundings.
const CLOSE = { atol: 1e-6, rtol: 1e-5 }
const ownForward = (module: Module): boolean => Object.hasOwn(module, 'forward')

describe('forward hooks', () => {
  it('see module, inputs and output, in order, until they are removed', () => {
    const layer = new Linear(2, 3)
    const seen: unknown[] = []
    const first = layer.registerForwardHook((module, inputs, output) => {
      expectTypeOf(module).toEqualTypeOf<Linear>()
      expectTypeOf(output).toEqualTypeOf<Tensor>()
      seen.push(1, module, inputs.length, inputs[0], output.shape)
    })
    const second = layer.registerForwardHook(() => {
      seen.push(2)
    })
    const x = ones([4, 2])
    layer.forward(x)
    expect(seen).toEqual([1, layer, 1, x, [4, 3], 2])
    first.remove()
    first.remove()
    layer.forward(x)
    expect(seen.slice(6)).toEqual([2])
    second[Symbol.dispose]()
    expect(ownForward(layer)).toBe(false)
    layer.forward(x)
    expect(seen.length).toBe(7)
  })

  it('change the output, one after the other', () => {
    const layer = new Identity()
    layer.registerForwardHook((_, __, y) => (y as Tensor).add(1))
    layer.registerForwardHook((_, __, y) => (y as Tensor).mul(10))
    expect(values(layer.forward(tensor([1, 2])))).toEqual([20, 30])
  })

  it('before: change inputs, as a tensor or a list, and see those of others', () => {
    const layer = new Tanh()
    layer.registerForwardPreHook((_, [x]) => x.mul(0))
    layer.registerForwardPreHook((_, [x]) => [x.add(1)])
    expectNumbers(values(layer.forward(tensor([5, 6]))), [Math.tanh(1), Math.tanh(1)], CLOSE)
  })

  it('run inside of Sequential and of models, and are told what modules tell each other', () => {
    const net = new Sequential(new Linear(2, 2), new Sequential(new Tanh()))
    const names: string[] = []
    const handles = net.namedModules().map(([name, m]) =>
      // Of modules in general a hook says itself what tensors it expects.
      m.registerForwardHook((_, [x]: Tensor[], y: Tensor) => {
        names.push(`${name}: ${x?.shape} → ${y.shape}`)
      }),
    )
    net.forward(ones([3, 2]))
    expect(names).toEqual(['0: 3,2 → 3,2', '1.0: 3,2 → 3,2', '1: 3,2 → 3,2', ': 3,2 → 3,2'])
    for (const handle of handles) handle.remove()
    expect(net.modules().some(ownForward)).toBe(false)

    const gpt = new GPT({ vocabSize: 5, blockSize: 4, numLayers: 2, numHeads: 1, embedDim: 4 })
    const kinds = new Set<string>()
    for (const m of gpt.modules())
      m.registerForwardHook((module) => {
        kinds.add(module.constructor.name)
      })
    gpt.forward(tensor([[1, 2]], { dtype: 'int32' }))
    expect([...kinds].sort()).toEqual([
      ...['Dropout', 'Embedding', 'GPT', 'LayerNorm', 'Linear', 'MLP', 'MultiHeadAttention'],
      'TransformerBlock',
    ])
  })

  it('may be removed by a hook, and be there twice', () => {
    const layer = new Identity()
    let calls = 0
    const once = layer.registerForwardHook(() => {
      calls++
      once.remove()
    })
    const count = (): void => {
      calls += 10
    }
    const handle = layer.registerForwardHook(count)
    layer.registerForwardHook(count)
    layer.forward(1)
    layer.forward(1)
    expect(calls).toBe(41)
    handle.remove()
    layer.forward(1)
    expect(calls).toBe(51)
  })

  it('leave nothing behind, and change nothing of what a module is', async () => {
    const layer = new Linear(2, 2)
    const { forward } = layer
    const text = String(layer)
    const state = Object.keys(layer.stateDict())
    using handle = layer.registerForwardHook(() => {})
    expect([String(layer), Object.keys(layer.stateDict())]).toEqual([text, state])
    expect(Object.keys(layer)).not.toContain('forward')
    handle.remove()
    expect(layer.forward).toBe(forward)

    await collected()
    const before = memory().tensors
    scope(() => {
      const y = layer.forward(ones([1, 2]))
      layer.registerForwardHook((_, __, out) => out.mul(2))
      layer.registerFullBackwardHook(() => {})
      layer.forward(y).sum().backward()
      layer.zeroGrad()
    })
    expect(memory().tensors).toBe(before)
  })

  it('keep a forward that was put in by hand', () => {
    const layer = new Tanh()
    const own = (x: Tensor): Tensor => x.neg()
    layer.forward = own
    const handle = layer.registerForwardHook((_, __, y) => y.mul(2))
    expect(values(layer.forward(tensor([1])))).toEqual([-2])
    handle.remove()
    expect(layer.forward).toBe(own)
    const other = layer.registerForwardHook(() => {})
    const later = (x: Tensor): Tensor => x
    layer.forward = later
    other.remove()
    expect(layer.forward).toBe(later)
  })

  it('under compile run while it is recorded, and what they compute is replayed', () => {
    const layer = new Identity()
    let calls = 0
    layer.registerForwardHook((_, __, y) => {
      calls++
      return (y as Tensor).mul(3)
    })
    using step = compile((x: Tensor) => layer.forward(x).add(1))
    const results = Array.from({ length: 8 }, (_, i) => values(step(tensor([i])))[0])
    expect(results).toEqual([1, 4, 7, 10, 13, 16, 19, 22])
    expect(step.plans.length).toBe(1)
    expect(calls).toBeLessThan(8)
  })

  const after = (hook: unknown) => (): unknown => {
    const layer = new Tanh()
    layer.registerForwardHook(hook as never)
    return layer.forward(ones([1]))
  }
  const before = (hook: unknown) => (): unknown => {
    const layer = new Tanh()
    layer.registerForwardPreHook(hook as never)
    return layer.forward(ones([1]))
  }
  it.each<[string, () => unknown, string]>([
    ['no function', () => new Tanh().registerForwardHook(3 as never), 'Tanh: a hook is a function, got 3'],
    [
      'a count',
      after(() => 3),
      'Tanh: a forward hook must return nothing or what takes the place of the output, got 3; put its body in braces',
    ],
    ['a Map', after(() => new Map()), 'a forward hook must return nothing'],
    ['a promise', after(async () => {}), 'got a promise'],
    [
      'a number for inputs',
      before(() => 3),
      'Tanh: a forward pre-hook must return nothing or what takes the place of the inputs, got 3',
    ],
  ])('refuse %s', (_, f, message) => {
    expect(f).toThrow(message)
    expect(f).toThrow(TilegradError)
  })
})

describe('full backward hooks', () => {
  class Product extends Module {
    forward(a: Tensor, b: Tensor, by = 1): { sum: Tensor; product: Tensor } {
      return { sum: a.add(b), product: a.mul(b).mul(by) }
    }
  }

  it('see gradients of all inputs and outputs at once', () => {
    const layer = new Product()
    const seen: unknown[] = []
    const list = (grads: readonly (Tensor | null)[]): unknown[] => grads.map((g) => g && values(g))
    layer.registerFullBackwardHook((module, gradInput, gradOutput) => {
      seen.push(module, list(gradInput), list(gradOutput))
    })
    const [a, b] = [[2], [3]].map((v) => tensor(v, { requiresGrad: true })) as [Tensor, Tensor]
    const { sum, product } = layer.forward(a, b, 1)
    sum.mul(5).add(product.mul(7)).sum().backward()
    // d(5 (a + b) + 7 ab): 5 + 7b and 5 + 7a; the number has none.
    expect(seen).toEqual([layer, [[26], [19], null], [[5], [7]]])
    expect([values(a.grad), values(b.grad)]).toEqual([[26], [19]])
    layer.forward(a, b.detach()).sum.sum().backward()
    expect(seen.slice(3)).toEqual([layer, [[1], null], [[1], null]])
  })

  it('change the gradients of inputs, one after the other', () => {
    const layer = new Sigmoid()
    const gradients: number[][] = []
    layer.registerFullBackwardHook((_, [g]) => [(g as Tensor).mul(0).add(3)])
    layer.registerFullBackwardHook((_, [g]) => {
      gradients.push(values(g))
    })
    const x = tensor([1, 2], { requiresGrad: true })
    layer.forward(x.mul(2)).sum().backward()
    expect(gradients).toEqual([[3, 3]])
    expect(values(x.grad)).toEqual([6, 6])
  })

  it('give the same gradients with and without', () => {
    const net = new Sequential(new Linear(3, 4), new Tanh(), new Linear(4, 2))
    const x = randn([5, 3])
    const gradients = (): number[] => {
      net.zeroGrad()
      net.forward(x).square().sum().backward()
      return net.parameters().flatMap((p) => values(p.grad))
    }
    const expected = gradients()
    let calls = 0
    for (const m of net.modules())
      m.registerFullBackwardHook(() => {
        calls++
      })
    // The same operators in the same order: to the bit.
    expect(gradients()).toEqual(expected)
    expect(calls).toBe(4)
    expect(autocast('bfloat16', () => net.forward(x)).shape).toEqual([5, 2])
  })

  it('may keep what they are shown, which is freed else', () => {
    const layer = new Linear(2, 2, { bias: false })
    const kept: Tensor[] = []
    let lost: Tensor | null = null
    layer.registerFullBackwardHook((_, gradInput, [gradOutput]) => {
      lost = gradInput[0] as Tensor
      kept.push((gradOutput as Tensor).keep())
    })
    layer
      .forward(ones([1, 2], { requiresGrad: true }))
      .mul(4)
      .sum()
      .backward()
    expect(values(kept[0])).toEqual([4, 4])
    expect((lost as Tensor | null)?.disposed).toBe(true)
  })

  it('are called where no input needs a gradient, again on a second pass, and not without a tape', () => {
    const layer = new Linear(2, 2)
    const seen: unknown[] = []
    layer.registerFullBackwardHook((_, gradInput, gradOutput) => {
      seen.push(
        gradInput.length,
        gradOutput.map((g) => values(g)),
      )
    })
    const loss = layer.forward(ones([1, 2])).sum()
    loss.backward({ retainGraph: true })
    loss.backward()
    expect(seen).toEqual([0, [[1, 1]], 0, [[1, 1]]])
    expect(noGrad(() => layer.forward(ones([1, 2]))).requiresGrad).toBe(false)
    expect(seen.length).toBe(4)
  })

  it('work on arrays of outputs, in checkpoints and with a graph of the gradient', () => {
    const lstm = new LSTM(2, 3)
    let calls = 0
    lstm.registerFullBackwardHook((_, [gradInput], gradOutput) => {
      calls++
      expect(gradInput?.shape).toEqual([4, 1, 2])
      expect(gradOutput[0]?.shape).toEqual([4, 1, 3])
    })
    const x = randn([4, 1, 2], { requiresGrad: true })
    lstm.forward(x)[0].sum().backward()
    expect(calls).toBe(1)

    const layer = new Tanh()
    const seen: number[][] = []
    layer.registerFullBackwardHook((_, [g], [d]) => {
      seen.push([...values(g), ...values(d)])
    })
    const y = tensor([0], { requiresGrad: true })
    checkpoint((t: Tensor) => layer.forward(t.mul(1)), y)
      .mul(2)
      .sum()
      .backward()
    expect(seen).toEqual([[2, 2]])
    const at = tensor([0.5], { requiresGrad: true })
    const [slope] = grad([layer.forward(at).sum()], [at], { createGraph: true }) as [Tensor]
    const [bend] = grad([slope.sum()], [at]) as [Tensor]
    const t = Math.tanh(0.5)
    expectNumbers(values(bend), [-2 * t * (1 - t * t)], CLOSE)
  })

  it.each([
    [
      'a count',
      () => 3,
      'Tanh: a full backward hook must return nothing or what takes the place of the gradients',
    ],
    [
      'another shape',
      () => [ones([3])],
      'Tanh: a full backward hook returned a gradient [3] for an input [2]',
    ],
  ])('refuse %s', (_, hook, message) => {
    const layer = new Tanh()
    layer.registerFullBackwardHook(hook as never)
    const loss = layer.forward(ones([2], { requiresGrad: true })).sum()
    expect(() => loss.backward()).toThrow(message)
  })
})

describe('modules and parameters by name', () => {
  it('are found, also where they have two names', () => {
    const net = new Sequential(new Sequential(new Linear(2, 2)), new Tanh())
    net.append(net.at(0))
    expect(net.getSubmodule('0.0')).toBe((net[0] as Sequential)[0])
    expect(net.getSubmodule('2.0')).toBe(net.getSubmodule('0.0'))
    expect(net.getSubmodule('')).toBe(net)
    expect(net.getParameter('2.0.bias')).toBe(net.parameters()[1])
    expect(() => net.getSubmodule('0.1')).toThrow(
      "Sequential: there is no module '0.1'; known: 0, 0.0, 1, 2, 2.0",
    )
    expect(() => net.getParameter('weight')).toThrow(
      "there is no parameter 'weight'; known: 0.0.weight, 0.0.bias",
    )
    expect(() => new Tanh().getParameter('weight')).toThrow('known: none')
  })
  it('are replaced', () => {
    const net = new Sequential(new Sequential(new Linear(2, 2)), new Tanh())
    expect(net.setSubmodule('0.0', new Linear(2, 5)).forward(ones([1, 2])).shape).toEqual([1, 5])
    expect(net.buffers()).toEqual([])
    expect(() => net.setSubmodule('0.1', new Tanh())).toThrow("there is no module '0.1'; known: 0, 0.0, 1")
    expect(() => net.setSubmodule('1', 3 as never)).toThrow('setSubmodule: 1 must be a module, got 3')
  })
})
