/** The frame of all pages: where one can go, whether the daemon is heard, and the task log. */
import {
  ActionIcon,
  Alert,
  AppShell,
  Badge,
  Burger,
  Button,
  Drawer,
  Group,
  NavLink,
  Text,
  Tooltip,
  useComputedColorScheme,
  useMantineColorScheme,
} from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import {
  IconBell,
  IconBox,
  IconDatabase,
  IconFileText,
  IconHierarchy3,
  IconList,
  IconListCheck,
  IconLogout,
  IconMoon,
  IconServer,
  IconStopwatch,
  IconSun,
} from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { Link, Outlet, useLocation } from '@tanstack/react-router';
import { firing } from '../alerts/words';
import { alertsQuery, infoQuery, operationsQuery } from '../api/queries';
import { useTaskNews } from '../operations/news';
import { TaskLog } from '../operations/TaskLog';
import { refuse } from '../operations/tasks';
import { useSession } from '../session/SessionGate';

const PAGES = [
  { to: '/', label: 'Machines', icon: IconBox },
  { to: '/host', label: 'Host', icon: IconServer },
  { to: '/tree', label: 'Tree', icon: IconHierarchy3 },
  { to: '/images', label: 'Images', icon: IconDatabase },
  { to: '/alerts', label: 'Alerts', icon: IconBell },
  { to: '/events', label: 'Events', icon: IconList },
  { to: '/logs', label: 'Logs', icon: IconFileText },
  { to: '/benchmarks', label: 'Benchmarks', icon: IconStopwatch },
] as const;

export function Layout() {
  const [navigation, { toggle, close }] = useDisclosure(false);
  const [tasks, { open: openTasks, close: closeTasks }] = useDisclosure(false);
  const { pathname } = useLocation();
  useTaskNews();
  return (
    <AppShell
      header={{ height: 56 }}
      navbar={{ width: 200, breakpoint: 'sm', collapsed: { mobile: !navigation } }}
      padding="md"
    >
      <a href="#content" className="skip-link">
        Skip to the content
      </a>
      <AppShell.Header>
        <Group h="100%" px="md" justify="space-between" wrap="nowrap">
          <Group gap="sm" wrap="nowrap">
            <Burger opened={navigation} onClick={toggle} hiddenFrom="sm" size="sm" aria-label="Pages" />
            <Text fw={700} size="lg">
              Queztl
            </Text>
            <HostName />
          </Group>
          <Group gap="xs" wrap="nowrap">
            <TasksButton onClick={openTasks} />
            <SchemeButton />
            <LogoutButton />
          </Group>
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="xs" aria-label="Pages">
        {PAGES.map(({ to, label, icon: Icon }) => (
          <NavLink
            key={to}
            component={Link}
            to={to}
            label={label}
            active={to === '/' ? pathname === '/' || pathname.startsWith('/vms') : pathname.startsWith(to)}
            leftSection={<Icon size={18} aria-hidden />}
            rightSection={to === '/alerts' && <AlertCount />}
            onClick={close}
            color="gray"
            variant="light"
          />
        ))}
      </AppShell.Navbar>
      <AppShell.Main id="content">
        <LostDaemon />
        <Outlet />
      </AppShell.Main>
      <Drawer
        opened={tasks}
        onClose={closeTasks}
        title="Tasks"
        position="right"
        size="lg"
        closeButtonProps={{ 'aria-label': 'Close the tasks' }}
      >
        <TaskLog />
      </Drawer>
    </AppShell>
  );
}

/** How many alerts fire. */
function AlertCount() {
  const { data: alerts = [] } = useQuery(alertsQuery);
  const count = firing(alerts).length;
  return (
    count > 0 && (
      <Badge size="sm" color="red" aria-label={`${count} firing`}>
        {count}
      </Badge>
    )
  );
}

function HostName() {
  const { data } = useQuery(infoQuery);
  return (
    <Text c="dimmed" size="sm" visibleFrom="sm">
      {data && `${data.host.name} · ${data.version}`}
    </Text>
  );
}

/** Says that the daemon is not heard, and that the page goes on by itself. */
function LostDaemon() {
  const { feed } = useSession();
  if (feed !== 'lost') return null;
  return (
    <Alert color="orange" title="The daemon does not answer" mb="md" role="status">
      What you see is as it was. The page goes on by itself as soon as the daemon is back; machines run on
      meanwhile.
    </Alert>
  );
}

function TasksButton({ onClick }: { onClick: () => void }) {
  const { data: operations = [] } = useQuery(operationsQuery);
  const running = operations.filter((one) => one.state === 'running').length;
  return (
    <Button
      variant="default"
      size="xs"
      onClick={onClick}
      leftSection={<IconListCheck size={16} aria-hidden />}
      rightSection={running > 0 && <Badge size="sm">{running}</Badge>}
    >
      Tasks
    </Button>
  );
}

function SchemeButton() {
  const { setColorScheme } = useMantineColorScheme();
  const scheme = useComputedColorScheme('light');
  const other = scheme === 'dark' ? 'light' : 'dark';
  return (
    <Tooltip label={`Make it ${other}`}>
      <ActionIcon
        variant="default"
        size="md"
        onClick={() => setColorScheme(other)}
        aria-label={`Make it ${other}`}
      >
        {scheme === 'dark' ? <IconSun size={16} /> : <IconMoon size={16} />}
      </ActionIcon>
    </Tooltip>
  );
}

function LogoutButton() {
  const { leave } = useSession();
  return (
    <Tooltip label="Log out">
      <ActionIcon variant="default" size="md" onClick={() => leave().catch(refuse)} aria-label="Log out">
        <IconLogout size={16} />
      </ActionIcon>
    </Tooltip>
  );
}
