import { ones, randn, reference, type Tensor, TilegradError, tensor } from '@tilegrad/core'
import {
  buffer,
  Dropout,
  GELU,
  type Layer,
  Linear,
  LSTM,
  Module,
  ModuleDict,
  ModuleList,
  parameter,
  quantize,
  ReLU,
  Sequential,
  Tanh,
} from '@tilegrad/nn'
import { describe, expect, it } from 'vitest'
import { values } from './helpers.ts'

const names = (module: Module): string[] => module.namedParameters().map(([name]) => name)
const kinds = (modules: Iterable<Module>): string[] => Array.from(modules, (m) => m.constructor.name)

describe('ModuleList', () => {
  it('has positions from both ends, in loops, and by assignment', () => {
    const list = new ModuleList<Layer>([new Linear(2, 2), new ReLU()])
    expect(list.length).toBe(2)
    expect(list[1]).toBe(list.at(-1))
    list[1] = new Tanh()
    expect(kinds(list)).toEqual(['Linear', 'Tanh'])
    expect(new ModuleList().length).toBe(0)
  })

  it('appends, extends and inserts, and names follow', () => {
    const list = new ModuleList<Layer>()
    const last = new Linear(2, 2)
    expect(list.append(new ReLU()).extend(new Set([new GELU(), last]))).toBe(list)
    expect(names(list)).toEqual(['2.weight', '2.bias'])
    list.insert(-1, new Tanh())
    expect(kinds(list)).toEqual(['ReLU', 'GELU', 'Tanh', 'Linear'])
    expect(names(list)).toEqual(['3.weight', '3.bias'])
    expect(list.insert(99, new Dropout()).at(4)).toBeInstanceOf(Dropout)
    list.insert(0, new Dropout())
    expect(list.at(4)).toBe(last)
    expect(list.length).toBe(6)
  })

  it('holds the modules of a model, by the names of PyTorch', () => {
    class Net extends Module {
      layers = new ModuleList([new Linear(3, 3), new Linear(3, 3)])

      forward(x: Tensor): Tensor {
        for (const layer of this.layers) x = layer.forward(x).relu()
        return x
      }
    }
    const net = new Net()
    expect(names(net)).toEqual(['layers.0.weight', 'layers.0.bias', 'layers.1.weight', 'layers.1.bias'])
    expect(net.forward(ones([2, 3])).shape).toEqual([2, 3])
    expect(String(net)).toBe(
      'Net(\n  (layers): ModuleList(\n    (0-1): 2 × Linear(inFeatures=3, outFeatures=3, bias=true)\n  )\n)',
    )
    expect(net.eval().layers[1].training).toBe(false)
    expect(() => net.layers.forward()).toThrow('ModuleList: a list of modules computes nothing')
  })

  it.each([
    ['no position', () => new ModuleList([new ReLU()]).at(1), 'ModuleList.at: there is no module 1 among 1'],
    ['half a position', () => new ModuleList([new ReLU()]).at(0.5), 'there is no module 0.5 among 1'],
    ['a function', () => new ModuleList([Math.tanh as never]), 'ModuleList: layer 0 must be a module'],
    ['a class', () => new ModuleList().append(ReLU as never), 'did you forget new ReLU(…)?'],
    ['an array to append', () => new ModuleList().append([] as never), 'extend(…) takes several'],
    ['one module', () => new ModuleList(new ReLU() as never), 'ModuleList: takes an array of modules, got'],
    ['no place', () => new ModuleList().insert('a' as never, new ReLU()), 'insert: needs a position'],
  ])('refuses %s', (_, f, message) => {
    expect(f).toThrow(message)
    expect(f).toThrow(TilegradError)
  })
})

describe('Sequential', () => {
  it('is a list of layers as well', () => {
    const net = new Sequential(new Linear(2, 3), new ReLU()).append(new Linear(3, 1))
    expect(net.length).toBe(3)
    expect(net.at(-1)).toBe(net[2])
    expect(names(net)).toEqual(['0.weight', '0.bias', '2.weight', '2.bias'])
    net[2] = new Linear(3, 5)
    expect(net.forward(ones([4, 2])).shape).toEqual([4, 5])
    expect(new Sequential(...[...net].slice(0, -1)).forward(ones([4, 2])).shape).toEqual([4, 3])
    expect(values(new Sequential().forward(ones([2])))).toEqual([1, 1])
  })

  it('says that a layer gives no tensor to the one behind it', () => {
    const recurrent = new LSTM(2, 3) as unknown as Layer
    expect(() => new Sequential(recurrent, new Linear(3, 1)).forward(ones([4, 1, 2]))).toThrow(
      'Sequential: LSTM gives an array, such as [output, state], and Linear after it takes a tensor; write a class',
    )
    expect(new Sequential(new Linear(2, 2), recurrent).forward(ones([4, 1, 2]))).toHaveLength(2)
  })

  it('of layers with names has parameters under these, in order', () => {
    const net = new Sequential({ c_fc: new Linear(2, 8), gelu: new GELU(), c_proj: new Linear(8, 2) })
    expect(names(net)).toEqual(['c_fc.weight', 'c_fc.bias', 'c_proj.weight', 'c_proj.bias'])
    expect(net.forward(ones([3, 2])).shape).toEqual([3, 2])
    expect([net.length, kinds(net)]).toEqual([3, ['Linear', 'GELU', 'Linear']])
    expect(String(net)).toMatch(/^Sequential\(\n {2}\(c_fc\): Linear.*\n {2}\(gelu\): GELU.*\n {2}\(c_proj\)/)
    net.append(new ReLU())
    expect(net.namedChildren().map(([name]) => name)).toEqual(['c_fc', 'gelu', 'c_proj', '3'])
    expect(() => net.insert(1, new ReLU())).toThrow('insert: needs a position among unnamed modules')
    const map = new Map<string, Layer>([
      ['up', new Linear(2, 3)],
      ['2', new Linear(3, 2)],
    ])
    expect(names(new Sequential(map))).toEqual(['up.weight', 'up.bias', '2.weight', '2.bias'])
    expect(() => new Sequential({ 'a.b': new ReLU() })).toThrow("without dots, got 'a.b'")
    expect(() => new Sequential({ a: 3 as never })).toThrow('Sequential: layer a must be a module, got 3')
    expect(() => new Sequential(null as never)).toThrow('Sequential')
  })
})

describe('ModuleDict', () => {
  it('has the methods of a Map, and any name', () => {
    const dict = new ModuleDict<Record<string, Layer>>({ forward: new Linear(2, 2), 10: new Tanh() })
    dict.set('2', new ReLU()).set('get', new Linear(1, 1))
    expect([...dict.keys()]).toEqual(['10', 'forward', '2', 'get'])
    expect(kinds(dict.values())).toEqual(['Tanh', 'Linear', 'ReLU', 'Linear'])
    expect(Array.from(dict, ([name]) => name)).toEqual(Array.from(dict.entries(), ([name]) => name))
    expect([dict.has('2'), dict.has('3'), dict.size]).toEqual([true, false, 4])
    expect([dict.delete('get'), dict.delete('get'), dict.size]).toEqual([true, false, 3])
    expect(names(dict)).toEqual(['forward.weight', 'forward.bias'])
    expect(dict.namedChildren().map(([name]) => name)).toEqual(['10', 'forward', '2'])
  })

  it('knows which module a name has', () => {
    const dict = new ModuleDict({ a: new Linear(2, 3), b: new Sequential(new ReLU()) })
    const width: number = dict.get('a').outFeatures
    expect([width, dict.get('b').length]).toEqual([3, 1])
    // @ts-expect-error: there is no such name
    expect(() => dict.get('c')).toThrow("ModuleDict: there is no module 'c'; known: a, b")
  })

  it('is found in a model: state, modes, moves, print', () => {
    class Net extends Module {
      heads = new ModuleDict<Record<string, Linear>>([
        ['left', new Linear(2, 1)],
        ['right', new Linear(2, 1)],
      ])

      forward(x: Tensor): Tensor {
        return this.heads.get('left').forward(x).add(this.heads.get('right').forward(x))
      }
    }
    const [net, other] = [new Net(), new Net()]
    expect(Object.keys(net.stateDict())).toEqual([
      'heads.left.weight',
      'heads.left.bias',
      'heads.right.weight',
      'heads.right.bias',
    ])
    other.loadStateDict(net.stateDict())
    const x = randn([3, 2])
    expect(values(other.forward(x))).toEqual(values(net.forward(x)))
    expect(String(net)).toBe(
      'Net(\n  (heads): ModuleDict(\n    (left): Linear(inFeatures=2, outFeatures=1, bias=true)\n    (right): Linear(inFeatures=2, outFeatures=1, bias=true)\n  )\n)',
    )
    net.to({ dtype: 'float64', device: reference }).eval()
    expect([net.heads.get('left').weight.dtype, net.heads.get('left').training]).toEqual(['float64', false])
    net.dispose()
    expect(other.heads.get('left').weight.disposed).toBe(false)
  })

  it.each([
    ['a dot', () => new ModuleDict({ 'a.b': new ReLU() }), "a name is a text without dots, got 'a.b'"],
    ['no name', () => new ModuleDict({ '': new ReLU() }), "a name is a text without dots, got ''"],
    ['a number', () => new ModuleDict().set('a', 3 as never), 'ModuleDict: a must be a module, got 3'],
    [
      'a list',
      () => new ModuleDict([new ReLU()] as never),
      'ModuleDict: takes modules by name, got an array',
    ],
    [
      'a module',
      () => new ModuleDict(new ReLU() as never),
      'ModuleDict: takes modules by name, got a module',
    ],
    ['a text', () => new ModuleDict('abc' as never), "ModuleDict: takes modules by name, got 'abc'"],
    ['forward', () => new ModuleDict().forward(), 'ModuleDict: modules by name compute nothing'],
  ])('refuses %s', (_, f, message) => {
    expect(f).toThrow(message)
    expect(f).toThrow(TilegradError)
  })
})

describe('a Map in a module', () => {
  class Net extends Module {
    parts = new Map<string, unknown>([
      ['in', new Linear(32, 32)],
      ['rest', { deep: [new Linear(32, 32, { bias: false })] }],
      ['scale', parameter(ones([1]))],
      ['seen', buffer(tensor([0]))],
      ['name', 'net'],
    ])
    words = new Map([[3, 'three']])

    forward(x: Tensor): Tensor {
      return (this.parts.get('in') as Layer).forward(x).mul(this.parts.get('scale') as Tensor)
    }
  }

  it('is looked into under its keys', () => {
    const net = new Net()
    expect(names(net)).toEqual([
      'parts.in.weight',
      'parts.in.bias',
      'parts.rest.deep.0.weight',
      'parts.scale',
    ])
    expect(net.namedBuffers().map(([name]) => name)).toEqual(['parts.seen'])
    expect(net.namedChildren().map(([name]) => name)).toEqual(['parts.in', 'parts.rest.deep.0'])
  })

  it('has its tensors moved and its modules replaced', () => {
    const net = new Net().to('float64')
    expect((net.parts.get('scale') as Tensor).dtype).toBe('float64')
    expect(net.forward(ones([2, 32]).to('float64')).dtype).toBe('float64')
    const small = quantize(new Net(), { blockSize: 16 })
    expect((small.parts.get('in') as Module).constructor.name).toBe('QuantizedLinear')
    expect(small.forward(ones([2, 32])).shape).toEqual([2, 32])
  })

  it('survives a cycle', () => {
    const net = new Net()
    net.parts.set('self', net.parts).set('net', net)
    expect(names(net).length).toBe(4)
  })
})
