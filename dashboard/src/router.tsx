/** The pages and their addresses. What is heavy is loaded when it is opened. */
import { createRootRoute, createRoute, createRouter, lazyRouteComponent } from '@tanstack/react-router';
import { readRange } from './charts/range';
import { Layout } from './layout/Layout';
import { NotFound } from './layout/NotFound';
import { VmsPage } from './vms/VmsPage';

const root = createRootRoute({ component: Layout, notFoundComponent: () => <NotFound /> });

const TABS = ['metrics', 'terminal', 'snapshots', 'protection', 'devices', 'limits', 'log'] as const;
export type VmTab = (typeof TABS)[number];

const vms = createRoute({
  getParentRoute: () => root,
  path: '/',
  component: VmsPage,
  validateSearch: (search: Record<string, unknown>): { find?: string } => ({ find: text(search.find) }),
});

const vm = createRoute({
  getParentRoute: () => root,
  path: '/vms/$vm',
  component: lazyRouteComponent(() => import('./vms/VmPage'), 'VmPage'),
  validateSearch: (search: Record<string, unknown>) => ({
    tab: TABS.find((tab) => tab === search.tab),
    terminal: search.terminal === 'shell' ? ('shell' as const) : undefined,
    ...readRange(search),
  }),
});

const images = createRoute({
  getParentRoute: () => root,
  path: '/images',
  component: lazyRouteComponent(() => import('./images/ImagesPage'), 'ImagesPage'),
});

const host = createRoute({
  getParentRoute: () => root,
  path: '/host',
  component: lazyRouteComponent(() => import('./host/HostPage'), 'HostPage'),
});

const tree = createRoute({
  getParentRoute: () => root,
  path: '/tree',
  component: lazyRouteComponent(() => import('./tree/TreePage'), 'TreePage'),
});

const alerts = createRoute({
  getParentRoute: () => root,
  path: '/alerts',
  component: lazyRouteComponent(() => import('./alerts/AlertsPage'), 'AlertsPage'),
});

const benchmarks = createRoute({
  getParentRoute: () => root,
  path: '/benchmarks',
  component: lazyRouteComponent(() => import('./benchmarks/BenchmarksPage'), 'BenchmarksPage'),
  validateSearch: (search: Record<string, unknown>): { before?: string; after?: string } => ({
    before: text(search.before),
    after: text(search.after),
  }),
});

const events = createRoute({
  getParentRoute: () => root,
  path: '/events',
  component: lazyRouteComponent(() => import('./events/EventsPage'), 'EventsPage'),
  validateSearch: (search: Record<string, unknown>): { find?: string } => ({ find: text(search.find) }),
});

const logs = createRoute({
  getParentRoute: () => root,
  path: '/logs',
  component: lazyRouteComponent(() => import('./logs/LogsPage'), 'LogsPage'),
  validateSearch: (search: Record<string, unknown>): { find?: string; of?: 'audit' } => ({
    find: text(search.find),
    of: search.of === 'audit' ? 'audit' : undefined,
  }),
});

export const router = createRouter({
  routeTree: root.addChildren([vms, vm, images, host, tree, alerts, events, logs, benchmarks]),
  defaultPreload: 'intent',
});

declare module '@tanstack/react-router' {
  interface Register {
    router: typeof router;
  }
}

function text(value: unknown): string | undefined {
  return typeof value === 'string' && value ? value : undefined;
}
