// Imports point one way: core <- backend-cpu, backend-webgpu, data, nn <- tilegrad <- examples, docs, test, bench.

// What each package may import from the workspace, besides itself.
const mayImport = {
  core: [],
  'backend-cpu': ['core'],
  'backend-webgpu': ['core'],
  data: ['core'],
  nn: ['core'],
  tilegrad: ['core', 'backend-cpu', 'backend-webgpu', 'data', 'nn'],
}

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: [
    ...Object.entries(mayImport).map(([name, allowed]) => ({
      name: `${name}-direction`,
      comment: `${name} may import only ${['itself', ...allowed].join(', ')}`,
      severity: /** @type {const} */ ('error'),
      from: { path: `^packages/${name}/` },
      to: {
        path: '^(packages|examples|docs|test|bench)/',
        // The tests of engines run cases that all engines have in common.
        pathNot: `^packages/(${[name, ...allowed].join('|')})/|^test/kernels/`,
      },
    })),
    {
      name: 'sources-import-no-tests',
      comment: 'what is published stands without the tests',
      severity: 'error',
      from: { path: '^(packages|examples)/[^/]+/src/' },
      to: { path: '^test/|/test/' },
    },
    {
      name: 'cases-are-of-no-engine',
      comment: 'test/kernels holds what all engines have in common: it knows core only',
      severity: 'error',
      from: { path: '^test/kernels/' },
      to: { path: '^(packages|examples|docs|test|bench)/', pathNot: '^(packages/core|test/kernels)/' },
    },
    {
      name: 'core-depends-on-seedrandom-only',
      comment: 'no other package and no Node module, so that core runs anywhere',
      severity: 'error',
      from: { path: '^packages/core/src/' },
      to: { pathNot: '^packages/core/src/|node_modules/(@types/)?seedrandom/|node_modules/mathjs/' },
    },
    {
      name: 'mathjs-in-formula-only',
      comment: 'mathjs is optional: only the entry @tilegrad/core/formula loads it',
      severity: 'error',
      from: { path: '^packages/[^/]+/src/', pathNot: '^packages/core/src/formula\\.ts$' },
      to: { path: 'node_modules/mathjs/' },
    },
    {
      name: 'core-does-not-load-formula',
      comment: 'the main entry of core must work without mathjs',
      severity: 'error',
      from: { path: '^packages/core/src/', pathNot: '^packages/core/src/formula\\.ts$' },
      to: { path: '^packages/core/src/formula\\.ts$' },
    },
    {
      name: 'no-reach-into-src',
      comment: 'import another package by its name, not by a path into it',
      severity: 'error',
      from: { path: '^(packages/[^/]+|examples/[^/]+|docs|test|bench)/' },
      to: { path: '^(packages|examples)/[^/]+/src/', pathNot: '^$1/' },
    },
    {
      name: 'no-cycle',
      comment: 'types may refer to each other; loaded modules may not',
      severity: 'error',
      from: {},
      to: { circular: true, viaOnly: { dependencyTypesNot: ['type-only'] } },
    },
    {
      name: 'no-unresolved',
      comment: 'a wrong path, or a package missing from package.json',
      severity: 'error',
      from: {},
      to: { couldNotResolve: true },
    },
    {
      name: 'no-undeclared',
      comment: 'list the package in the package.json of whoever imports it',
      severity: 'error',
      from: { path: '^(packages|examples)/[^/]+/src/' },
      to: { dependencyTypes: ['npm-no-pkg', 'npm-unknown'] },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules|^packages/[^/]+/dist/' },
    exclude: { path: '^(docs/api|examples/[^/]+/dist)/' },
    tsPreCompilationDeps: true,
    combinedDependencies: true,
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'types', 'default'],
      extensions: ['.ts', '.js', '.mjs', '.d.ts'],
    },
  },
}
